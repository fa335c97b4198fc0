-- Remove a worker that disconnects.
redis.call('HDEL', WORKERS, args.worker)
redis.call('ZREM', SEEN, args.worker)
save()
return reply()
