-- uses: (nothing)
-- The whole registry at one revision.
-- KEYS  R (root of the registry)
-- ARGV  (none)
-- reply msgpack: [revision, models [name, JSON, …], deployments […], routes […],
--       pipelines […]]
-- keys  R:models, R:deployments, R:routes, R:pipelines HASH name -> JSON, R:rev STRING
local R = KEYS[1]
return cmsgpack.pack({redis.call('GET', R .. ':rev') or '0', redis.call('HGETALL', R .. ':models'),
  redis.call('HGETALL', R .. ':deployments'), redis.call('HGETALL', R .. ':routes'),
  redis.call('HGETALL', R .. ':pipelines')})
