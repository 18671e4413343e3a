"""Django settings of the platform project, all from the environment; the README has the table."""

import logging
import os
import sys
from pathlib import Path
from typing import Any

from django.templatetags.static import static
from django.urls import reverse_lazy

from lemcloud import environment
from lemcloud.environment import REDIS_OPTIONS
from relay.conf import SettingError, from_environment

BASE_DIR = Path(__file__).resolve().parent.parent

try:
    ENV = environment.read(os.environ, BASE_DIR)
    RELAY = from_environment(os.environ, known=environment.VARIABLES)
    if not RELAY.spool_dir:
        RELAY = RELAY.model_copy(update={"spool_dir": str(ENV.var_dir / "spool")})
    if RELAY.console is None:
        RELAY = RELAY.model_copy(update={"console": not (os.environ.get("DATABASE_URL") or ENV.redis_url)})
except SettingError as error:
    # One line instead of a traceback: whoever starts the relay has to see what to change.
    sys.exit(f"lem-relay: {error}")

SECRET_KEY = ENV.secret_key
DEBUG = ENV.debug
ALLOWED_HOSTS = ENV.allowed_hosts
PORT = ENV.port

INSTALLED_APPS = [
    "daphne",  # before staticfiles: it brings runserver
    "unfold",  # before the admin: its templates take the place of the admin's own
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "channels",
    "relay",
    "lemcloud",  # for the admin of users
]

MIDDLEWARE = [
    "lemcloud.cookies.SecureCookies",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

ROOT_URLCONF = "lemcloud.urls"
ASGI_APPLICATION = "lemcloud.asgi.application"

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

DATABASES = {"default": ENV.database}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

LAYERS = {
    "pubsub": "channels_redis.pubsub.RedisPubSubChannelLayer",
    "core": "channels_redis.core.RedisChannelLayer",
}
CHANNEL_LAYERS: dict[str, Any] = {
    "default": {
        "BACKEND": LAYERS[ENV.channel_layer],
        "CONFIG": {"hosts": [{"address": ENV.redis_url, **REDIS_OPTIONS}]},
    }
    if ENV.redis_url
    else {"BACKEND": "relay.links.memory_layer.MemoryChannelLayer"}
}

SIMPLE_JWT: dict[str, Any] = {
    "ALGORITHM": ENV.jwt_algorithm,
    "SIGNING_KEY": SECRET_KEY,
    "VERIFYING_KEY": ENV.jwt_public_key,
    "AUDIENCE": ENV.jwt_audience,
    "ISSUER": ENV.jwt_issuer,
    "LEEWAY": ENV.jwt_leeway_seconds,
}

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator"},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]

LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_TZ = True

STATIC_URL = "static/"
# Served by whitenoise straight from the installed packages, so that nothing has to be collected first.
WHITENOISE_USE_FINDERS = True
WHITENOISE_AUTOREFRESH = DEBUG


def _headers_of_static_files(headers: dict[str, str], path: str, url: str) -> None:
    if "/relay/console/" in url:
        # Asked about again each time (304 where nothing changed): these modules import each other, and one of
        # an earlier release must not meet one of this.
        headers["Cache-Control"] = "no-cache"


WHITENOISE_ADD_HEADERS_FUNCTION = _headers_of_static_files

# Its colours, fonts and scripts all come from the installed packages.
UNFOLD: dict[str, Any] = {
    "SITE_TITLE": "Lem Relay",
    "SITE_HEADER": "Lem Relay",
    "SITE_SYMBOL": "swap_horiz",
    "SITE_FAVICONS": [
        {"rel": "icon", "type": "image/svg+xml", "href": lambda request: static("relay/icon.svg")}
    ],
    "SITE_URL": None,
    "SHOW_VIEW_ON_SITE": False,
    "COLORS": {
        "primary": {
            "50": "oklch(97.1% .014 243)",
            "100": "oklch(93.6% .032 243)",
            "200": "oklch(88.2% .059 244)",
            "300": "oklch(80.9% .105 245)",
            "400": "oklch(70.7% .145 247)",
            "500": "oklch(60.3% .162 250)",
            "600": "oklch(52.6% .168 253)",
            "700": "oklch(46.8% .153 254)",
            "800": "oklch(40.4% .126 255)",
            "900": "oklch(35.9% .098 256)",
            "950": "oklch(26.2% .068 258)",
        },
    },
    "SIDEBAR": {
        "navigation": [
            {
                "title": "Relay",
                "items": [
                    {"title": "Dashboard", "icon": "monitoring", "link": reverse_lazy("admin:index")},
                    {
                        "title": "Sessions",
                        "icon": "swap_horiz",
                        "link": reverse_lazy("admin:relay_relaysession_changelist"),
                        "active": lambda request: (
                            request.path.startswith(str(reverse_lazy("admin:relay_relaysession_changelist")))
                            and request.path != str(reverse_lazy("admin:relay_relaysession_accounts"))
                        ),
                        "permission": lambda request: request.user.has_perm("relay.view_relaysession"),
                    },
                    {
                        "title": "Accounts",
                        "icon": "business_center",
                        "link": reverse_lazy("admin:relay_relaysession_accounts"),
                        "permission": lambda request: request.user.has_perm("relay.view_relaysession"),
                    },
                    {
                        "title": "Exports",
                        "icon": "download",
                        "link": reverse_lazy("admin:relay_usageexport_changelist"),
                        "permission": lambda request: request.user.has_perm("relay.view_usageexport"),
                    },
                ],
            },
            {
                "title": "Access",
                "items": [
                    {
                        "title": "Users",
                        "icon": "person",
                        "link": reverse_lazy("admin:auth_user_changelist"),
                        "permission": lambda request: request.user.has_perm("auth.view_user"),
                    },
                    {
                        "title": "Groups",
                        "icon": "group",
                        "link": reverse_lazy("admin:auth_group_changelist"),
                        "permission": lambda request: request.user.has_perm("auth.view_group"),
                    },
                ],
            },
        ],
    },
}

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "filters": {"one_line": {"()": "lemcloud.logs.OneLine"}},
    "formatters": {
        "text": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"},
        "line": {"format": "%(message)s"},
    },
    "handlers": {
        "stderr": {"class": "logging.StreamHandler", "formatter": "text"},
        # Stdout carries JSON lines and nothing else, so that a log shipper can parse all of it.
        "stdout": {"class": "logging.StreamHandler", "formatter": "line", "stream": "ext://sys.stdout"},
    },
    "loggers": {
        "django": {"handlers": [], "level": "INFO", "propagate": True},
        "relay.usage": {"handlers": ["stdout"], "level": "INFO", "propagate": False},
        # It logs each second in which Redis is away, with a traceback of a hundred lines.
        "channels_redis.pubsub": {"filters": ["one_line"]},
        "relay.access": {"handlers": ["stdout"], "level": "INFO", "propagate": False},
    },
    "root": {"handlers": ["stderr"], "level": "INFO"},
}
logging.captureWarnings(True)
