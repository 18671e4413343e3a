"""HTTP paths of the relay."""

from django.urls import path

from relay import views

urlpatterns = [
    path("health", views.health, name="health"),
    path("ready", views.ready, name="ready"),
    path("console/", views.console, name="console"),
    path("relay/<path:session_id>", views.upgrade_required, name="relay"),
]
