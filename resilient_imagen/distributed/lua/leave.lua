-- A worker says goodbye.
redis.call('HDEL', WORKERS, WORKER)
redis.call('ZREM', SEEN, WORKER)
save()
return told()
