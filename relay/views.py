"""HTTP answers about the relay itself, for balancers and operators."""

from django.http import HttpRequest, JsonResponse
from django.views.decorators.http import require_safe


@require_safe
def health(request: HttpRequest) -> JsonResponse:
    """200 while the process serves, whatever its backends do: a reason to keep it, not to send it work."""
    return JsonResponse({"status": "ok"})
