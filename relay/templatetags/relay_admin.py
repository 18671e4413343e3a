"""Template tags of the relay's pages in the admin."""

from typing import Any

from django import template
from django.urls import reverse
from django.utils.safestring import SafeString, mark_safe

from relay.rules.units import human_bytes, human_duration, human_moment

register = template.Library()
register.filter("human_bytes", human_bytes)
register.filter("human_duration", human_duration)
register.filter("human_moment", human_moment)


@register.inclusion_tag("relay/admin/dashboard.html", takes_context=True)
def relay_dashboard(context: dict[str, Any]) -> dict[str, Any]:
    """The dashboard, for any page of the admin; empty for who may not see sessions."""
    from relay.admin import dashboard  # not above: unfold loads every tag library before its admin is there

    request = context["request"]
    return {
        "request": request,
        "allowed": request.user.has_perm("relay.view_relaysession"),
        "url": reverse("admin:relay_relaysession_figures"),
        "every": dashboard.REFRESH_SECONDS,
    }


@register.simple_tag(takes_context=True)
def relay_figures(context: dict[str, Any]) -> SafeString:
    """What is in it, rendered."""
    from relay.admin import dashboard

    return mark_safe(dashboard.shown(context["request"]))  # noqa: S308 - a template rendered it
