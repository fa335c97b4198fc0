"""One view of the vendors for all processes: what breakers and pacing share through Redis.

`Fleet` is this process's part in it: a background task that owns the connections, so that no call
ever waits for Redis on its way, except for its place in the shared queue, which is bounded.
Nothing here loads redis until the first connection is made.
"""

from resilient_imagen.fleet.address import Address, account
from resilient_imagen.fleet.agent import RedisCoordinator
from resilient_imagen.fleet.member import Participant
from resilient_imagen.fleet.record import BreakerRecord
from resilient_imagen.fleet.steps import ScriptCall

__all__ = ["Address", "RedisCoordinator", "Participant", "BreakerRecord", "ScriptCall", "account"]
