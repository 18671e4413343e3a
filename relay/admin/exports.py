"""The exports that went to destinations, to look at."""

from django.contrib import admin
from django.http import HttpRequest
from unfold.admin import ModelAdmin

from relay.admin.readonly import ReadOnly
from relay.models import UsageExport
from relay.rules.units import human_bytes


@admin.register(UsageExport)
class UsageExportAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc]
    """What went to whom; the sessions of an export are too many to list."""

    list_display = (
        *("destination", "made_at", "made_by", "format", "window_start", "window_end", "account_id"),
        *("sessions", "rows", "relayed", "delivered_at"),
    )
    list_filter = ("destination", "format")
    date_hierarchy = "made_at"
    search_fields = ("=digest", "output")
    search_help_text = "The SHA-256 of a file, or a part of its name"
    ordering = ("-made_at", "-export_uuid")
    show_full_result_count = False
    list_fullwidth = True

    @admin.display(description="relayed", ordering="total_bytes")
    def relayed(self, export: UsageExport) -> str:
        return human_bytes(export.total_bytes)

    def get_readonly_fields(self, request: HttpRequest, obj: UsageExport | None = None) -> list[str]:
        return [field.name for field in UsageExport._meta.concrete_fields]
