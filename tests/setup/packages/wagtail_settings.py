"""Settings of Wagtail's own sample project, on the database of DATABASE_URL."""

import os
from urllib.parse import urlsplit

from school.settings.dev import *  # noqa: F401, F403

url = urlsplit(os.environ["DATABASE_URL"])
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": url.path.lstrip("/"),
        "HOST": url.hostname,
        "PORT": url.port,
        "USER": url.username,
    }
}
