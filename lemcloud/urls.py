"""HTTP paths of the platform project."""

from django.contrib import admin
from django.urls import include, path

urlpatterns = [
    path("", include("relay.urls")),
    path("admin/", admin.site.urls),
]
