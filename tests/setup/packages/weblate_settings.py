"""Settings of Weblate, on the database of DATABASE_URL. Migrations draw no text and make no backup."""

import os
import sys
from unittest.mock import MagicMock
from urllib.parse import urlsplit

# They need the headers of Cairo and GObject to be installed.
for name in ("cairo", "gi", "gi.repository"):
    sys.modules[name] = MagicMock()

from weblate.settings_example import *  # noqa: E402, F401, F403

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
DATA_DIR = os.path.abspath("data")
CACHE_DIR = os.path.abspath("cache")
CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
CELERY_BROKER_URL = "memory://"
CELERY_TASK_ALWAYS_EAGER = True
SECRET_KEY = "of-a-test"
SITE_DOMAIN = "weblate.example"
