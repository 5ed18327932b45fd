"""What every API uses: the models, the settings, and the one way to have a request answered."""

from __future__ import annotations

from contextlib import aclosing

from starlette.requests import Request

from dsv3c.runtime.server.answering import answer
from dsv3c.runtime.server.asked import Asked
from dsv3c.runtime.server.deltas import Deltas
from dsv3c.runtime.server.metrics import Meter, Metrics
from dsv3c.runtime.server.models import Models
from dsv3c.runtime.server.remembered import Remembered
from dsv3c.runtime.server.settings import Settings


class Service:
    def __init__(self, settings: Settings, models: Models) -> None:
        self.settings = settings
        self.models = models
        self.metrics = Metrics(models)
        self.remembered = Remembered()

    async def answer(self, asked: Asked) -> Deltas:
        """As `answering.answer`, of the model that is asked for. Raises what leasing it raises, too."""
        async with self.models.lease(asked.model) as lease:
            meter = Meter(self.metrics, lease.served.name)
            async with aclosing(answer(lease, asked, meter)) as deltas:
                async for delta in deltas:
                    yield delta


def service_of(request: Request) -> Service:
    found: Service = request.app.state.service
    return found
