"""Cookies that were set over TLS stay on it."""

from django.http import HttpRequest, HttpResponseBase
from django.utils.deprecation import MiddlewareMixin


class SecureCookies(MiddlewareMixin):
    """Marks each cookie of a request that came over TLS as `Secure`.

    Django's settings for it are for all requests or none, and would lock everybody out of the admin of a
    relay that is tried out over plain HTTP.
    """

    def process_response(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        """The same response, its cookies marked."""
        if request.is_secure():
            for cookie in response.cookies.values():
                cookie["secure"] = True
        return response
