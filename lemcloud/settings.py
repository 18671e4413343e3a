"""Django settings of the platform project, all from the environment; the README has the table."""

import logging
import os
import sys
from pathlib import Path
from typing import Any

from lemcloud import environment
from lemcloud.environment import REDIS_OPTIONS
from relay.conf import SettingError, from_environment

BASE_DIR = Path(__file__).resolve().parent.parent

try:
    ENV = environment.read(os.environ, BASE_DIR)
    RELAY = from_environment(os.environ, known=environment.VARIABLES)
    if not RELAY.spool_dir:
        RELAY = RELAY.model_copy(update={"spool_dir": str(ENV.var_dir / "spool")})
except SettingError as error:
    # One line instead of a traceback: whoever starts the relay has to see what to change.
    sys.exit(f"lem-relay: {error}")

SECRET_KEY = ENV.secret_key
DEBUG = ENV.debug
ALLOWED_HOSTS = ENV.allowed_hosts
PORT = ENV.port

INSTALLED_APPS = [
    "daphne",  # before staticfiles: it brings runserver
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "channels",
    "relay",
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
    else {"BACKEND": "channels.layers.InMemoryChannelLayer"}
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

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "filters": {
        "one_line": {"()": "lemcloud.logs.OneLine"},
        "without_queries": {"()": "lemcloud.logs.WithoutQueries"},
    },
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
        # uvicorn logs each upgrade with its query string, which may hold a token.
        "uvicorn.error": {"filters": ["without_queries"]},
        "relay.access": {"handlers": ["stdout"], "level": "INFO", "propagate": False},
    },
    "root": {"handlers": ["stderr"], "level": "INFO"},
}
logging.captureWarnings(True)
