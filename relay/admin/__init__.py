"""The relay in Django's admin, by django-unfold: records to look at and never to change, sessions to close.

Needs `unfold` before `django.contrib.admin` in `INSTALLED_APPS` (a system check says so).
"""

from relay.admin.exports import UsageExportAdmin
from relay.admin.sessions import RelaySessionAdmin

__all__ = ["RelaySessionAdmin", "UsageExportAdmin"]
