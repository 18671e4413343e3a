"""What every page of records has in common."""

from django.db.models import Model
from django.http import HttpRequest


class ReadOnly:
    """Nobody adds, changes or deletes a record, whatever their permissions; those with `view` see it."""

    def has_add_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False
