"""One webhook: an alert as JSON by POST, signed where a secret is set. A failure is an answer here, not an error.

Signature: Standard Webhooks 1.0 (`webhook-id`, `webhook-timestamp`, `webhook-signature: v1,<base64 HMAC-SHA256 of
"id.timestamp.body">`); a secret that begins with `whsec_` is base64 after it, as that standard has it.
"""

import asyncio
import base64
import binascii
import hashlib
import hmac
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import httpx

from cutover.errors import ConfigError
from cutover.settings import Settings

TIMEOUT = 5.0


@dataclass(frozen=True)
class Webhook:
    """Where alerts are posted to. Neither address nor secret is ever shown: addresses of chat rooms are secrets."""

    url: str = field(repr=False)
    secret: str = field(default="", repr=False)
    #: Seconds for connecting, sending and the whole of the answer.
    timeout: float = TIMEOUT

    @classmethod
    def from_settings(cls, settings: Settings) -> "Webhook | None":
        """The webhook of CUTOVER_WEBHOOK_URL and CUTOVER_WEBHOOK_SECRET, or None. Raises ConfigError for a bad one."""
        url = settings.get("CUTOVER_WEBHOOK_URL")
        if not url:
            return None
        if not url.startswith(("https://", "http://")):
            raise ConfigError("CUTOVER_WEBHOOK_URL is no web address: write https://… (or http://… on loopback)")
        webhook = cls(url, settings.get("CUTOVER_WEBHOOK_SECRET"))
        webhook.sign("", 0, b"")
        return webhook

    def sign(self, message_id: str, timestamp: int, body: bytes) -> str:
        """The `webhook-signature` header; empty without a secret."""
        if not self.secret:
            return ""
        key = self.secret.encode()
        if self.secret.startswith("whsec_"):
            try:
                key = base64.b64decode(self.secret.removeprefix("whsec_"), validate=True)
            except binascii.Error:
                raise ConfigError("CUTOVER_WEBHOOK_SECRET: what follows whsec_ is not base64") from None
        signed = hmac.new(key, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
        return "v1," + base64.b64encode(signed).decode()

    async def post(self, message_id: str, body: Mapping[str, object]) -> str:
        """Post once; an empty text when it was accepted (2xx), else what went wrong, without the address."""
        client = httpx.AsyncClient(timeout=self.timeout, follow_redirects=False)
        try:
            async with client:
                request = client.build_request("POST", self.url, json=dict(body))
                timestamp = int(time.time())
                request.headers["webhook-id"] = message_id
                request.headers["webhook-timestamp"] = str(timestamp)
                if signature := self.sign(message_id, timestamp, request.content):
                    request.headers["webhook-signature"] = signature
                # httpx's timeout is for each read; a server that drips bytes must not hold us for ever.
                async with asyncio.timeout(self.timeout):
                    response = await client.send(request)
        except TimeoutError:
            return f"no answer within {self.timeout:g} s"
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as e:
            return type(e).__name__
        return "" if response.is_success else f"answered with status {response.status_code}"
