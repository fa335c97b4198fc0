"""One view of the vendors for all processes: what breakers and pacing share through Redis.

`RedisCoordinator` is this process's part in it: a background task that owns the connections, so
that no call
ever waits for Redis on its way, except for its place in the shared queue, which is bounded.
Nothing here loads redis until the first connection is made.
"""

from resilient_imagen.distributed.breaker_record import BreakerRecord
from resilient_imagen.distributed.coordinator import RedisCoordinator
from resilient_imagen.distributed.participant import Participant
from resilient_imagen.distributed.redis_address import Address
from resilient_imagen.distributed.scripts import ScriptCall

__all__ = ["Address", "BreakerRecord", "Participant", "RedisCoordinator", "ScriptCall"]
