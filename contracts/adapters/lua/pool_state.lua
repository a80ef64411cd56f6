-- uses: base
-- Everything in the pool at one moment, and the event up to which it is true.
-- KEYS  P
-- ARGV  (none)
-- reply msgpack: [now, epoch, event id, nodes [[id, heartbeat, [field, value, …]], …],
--       devices [[id, [field, value, …]], …], leases [[id, expires, [field, value, …]], …],
--       topics [[topic, want […], own […], since […]], …]]
-- keys  all of the pool but the tombstones
local nodes, devices, leases, topics = {}, {}, {}, {}
local scored = redis.call('ZRANGE', P .. ':nodes', 0, -1, 'WITHSCORES')
for i = 1, #scored, 2 do
  nodes[#nodes + 1] = {scored[i], scored[i + 1], redis.call('HGETALL', P .. ':node:' .. scored[i])}
end
for _, id in ipairs(redis.call('SMEMBERS', P .. ':devs')) do
  devices[#devices + 1] = {id, redis.call('HGETALL', P .. ':dev:' .. id)}
end
scored = redis.call('ZRANGE', P .. ':lexp', 0, -1, 'WITHSCORES')
for i = 1, #scored, 2 do
  leases[#leases + 1] = {scored[i], scored[i + 1], redis.call('HGETALL', P .. ':lease:' .. scored[i])}
end
for _, id in ipairs(redis.call('ZRANGE', P .. ':quar', 0, -1)) do
  leases[#leases + 1] = {id, '0', redis.call('HGETALL', P .. ':lease:' .. id)}
end
for _, topic in ipairs(redis.call('SMEMBERS', P .. ':topics')) do
  local root = P .. ':part:' .. topic
  topics[#topics + 1] = {topic, redis.call('HGETALL', root .. ':want'), redis.call('HGETALL', root .. ':own'),
    redis.call('HGETALL', root .. ':since')}
end
local last = redis.call('XREVRANGE', P .. ':ev', '+', '-', 'COUNT', 1)
local event_id = last[1] and last[1][1] or '0-0'
return cmsgpack.pack({fmt(now_ms()), redis.call('GET', P .. ':epoch') or '0', event_id, nodes, devices, leases, topics})
