"""Settings of a shop of Oscar, on the database of DATABASE_URL."""

import os
from urllib.parse import urlsplit

from oscar.defaults import *  # noqa: F401, F403

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
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
SECRET_KEY = "of-a-test"
SITE_ID = 1
STATIC_URL = "/static/"
USE_TZ = True
HAYSTACK_CONNECTIONS = {"default": {"ENGINE": "haystack.backends.simple_backend.SimpleEngine"}}
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "oscar.apps.basket.middleware.BasketMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]


def app(path, name):
    return f"oscar.apps.{path}.apps.{name}Config"


INSTALLED_APPS = [
    *(
        f"django.contrib.{name}"
        for name in (
            "admin auth contenttypes sessions messages staticfiles sites flatpages".split()
        )
    ),
    "oscar.config.Shop",
    *(
        app(name, name.capitalize())
        for name in (
            "analytics checkout address shipping catalogue communication partner basket payment offer order "
            "customer search voucher wishlists dashboard"
        ).split()
    ),
    app("catalogue.reviews", "CatalogueReviews"),
    *(
        app(f"dashboard.{name}", f"{name.capitalize()}Dashboard")
        for name in (
            "reports users orders catalogue offers partners pages ranges reviews vouchers communications shipping"
        ).split()
    ),
    "widget_tweaks",
    "haystack",
    "treebeard",
    "sorl.thumbnail",
    "django_tables2",
]
