"""HTTP answers about the relay itself, for balancers and operators; and the page for people, the console."""

from typing import Final

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.template.loader import render_to_string
from django.views.decorators.http import require_safe

from relay import conf, readiness

CONSOLE_HEADERS: Final = {
    # Whatever a peer sends, nothing runs here but the console's own files, and it talks to this relay only.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


@require_safe
def health(request: HttpRequest) -> JsonResponse:
    """200 while the process serves, whatever its backends do: a reason to keep it, not to send it work."""
    return JsonResponse({"status": "ok"})


async def ready(request: HttpRequest) -> JsonResponse:
    """200 while this node takes new sessions; 503 with the failing parts named while it doesn't."""
    failing = await readiness.failing()
    if failing:
        answer = JsonResponse({"status": "not ready", "failing": failing}, status=503)
        # Asked every few seconds: Django would log each answer as an error of the server.
        answer._has_been_logged = True  # type: ignore[attr-defined]
        return answer
    return JsonResponse({"status": "ready"})


def upgrade_required(request: HttpRequest, session_id: str) -> HttpResponse:
    """426 for plain HTTP to a session's URL: the hint that whoever tries it with curl needs."""
    text = "This is a WebSocket endpoint: connect with ws:// or wss:// and a token.\n"
    return HttpResponse(
        text, status=426, content_type="text/plain", headers={"Upgrade": "websocket", "Connection": "Upgrade"}
    )


@require_safe
def console(request: HttpRequest) -> HttpResponse:
    """The page that is a client of the relay, the same for everybody: no user, no cookie, no database."""
    if not conf.current().console:
        text = "The console is off here; RELAY_CONSOLE=1 turns it on.\n"
        return HttpResponse(text, status=404, content_type="text/plain")
    return HttpResponse(render_to_string("relay/console.html"), headers=CONSOLE_HEADERS)
