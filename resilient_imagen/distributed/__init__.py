"""Distributed state: circuit breakers and rate limits shared by several processes through Redis.

`RedisCoordinator` connects this process. A background task owns the connections, so a call never
waits for Redis, except for its place in the shared queue, and that wait is bounded. The redis
package is not imported before the first connection.
"""

from resilient_imagen.distributed.breaker_record import BreakerRecord
from resilient_imagen.distributed.coordinator import RedisCoordinator
from resilient_imagen.distributed.participant import Participant
from resilient_imagen.distributed.redis_address import Address
from resilient_imagen.distributed.scripts import ScriptCall
from resilient_imagen.distributed.shared_orders import SharedOrders, order_call

__all__ = [
    "Address",
    "BreakerRecord",
    "Participant",
    "RedisCoordinator",
    "ScriptCall",
    "SharedOrders",
    "order_call",
]
