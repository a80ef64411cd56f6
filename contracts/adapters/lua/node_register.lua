-- uses: base, lease
-- An agent takes charge of a node and says which devices it has. An agent that registered earlier is fenced off.
-- KEYS  P
-- ARGV  node, host, boot id, cores, MiB, labels (JSON),
--       then for each device: id, kind, name, MiB, compute, lease slots, health, labels (JSON)
-- reply OK incarnation epoch | PLACE detail (a device is in use on another node)
-- keys  P:nodes ZSET heartbeat ms, P:node:<n> HASH, P:node:<n>:devs SET, P:devs SET, P:dev:<id> HASH
local node = ARGV[1]
local key = P .. ':node:' .. node
local seen = {}
for i = 7, #ARGV, 8 do
  local old = redis.call('HMGET', P .. ':dev:' .. ARGV[i], 'node', 'nlease')
  if old[1] and old[1] ~= node and old[2] ~= '0' then
    return {'PLACE', ARGV[i] .. ' is in use on ' .. old[1]}
  end
  if old[1] and old[1] ~= node then redis.call('SREM', P .. ':node:' .. old[1] .. ':devs', ARGV[i]) end
  seen[ARGV[i]] = true
end
local now = now_ms()
local current = epoch(now)
local inc = next_token(now)
local hold = redis.call('HGET', key, 'hold') or ''
redis.call('HSET', key, 'inc', inc, 'state', hold ~= '' and hold or 'ready', 'hold', hold, 'host', ARGV[2],
  'boot_id', ARGV[3], 'cores', ARGV[4], 'ram', ARGV[5], 'labels', ARGV[6])
redis.call('ZADD', P .. ':nodes', fmt(now), node)

for _, device in ipairs(redis.call('SMEMBERS', key .. ':devs')) do
  if not seen[device] then
    redis.call('HSET', P .. ':dev:' .. device, 'health', 'lost', 'gen', inc)
    for _, id in ipairs(redis.call('SMEMBERS', P .. ':dev:' .. device .. ':leases')) do
      if redis.call('HGET', P .. ':lease:' .. id, 'state') ~= 'quarantine' then end_lease(id, now, 'device lost') end
    end
  end
end
for i = 7, #ARGV, 8 do
  local dev = P .. ':dev:' .. ARGV[i]
  local old = redis.call('HMGET', dev, 'kind', 'mem_cap', 'compute_cap', 'lease_slots', 'node', 'health', 'mem_used',
    'compute_used')
  -- What is taken cannot be taken back by a smaller report: capacity never falls below use.
  local memory = fmt(math.max(tonumber(ARGV[i + 3]), tonumber(old[7] or '0')))
  local compute = fmt(math.max(tonumber(ARGV[i + 4]), tonumber(old[8] or '0')))
  if not old[1] then
    redis.call('HSET', dev, 'mem_used', 0, 'compute_used', 0, 'nlease', 0, 'mask', 0, 'mode', 'free')
  end
  if old[1] ~= ARGV[i + 1] or old[2] ~= memory or old[3] ~= compute or old[4] ~= ARGV[i + 5] or old[5] ~= node
    or old[6] ~= ARGV[i + 6] then
    redis.call('HSET', dev, 'gen', inc)
  end
  redis.call('HSET', dev, 'node', node, 'kind', ARGV[i + 1], 'name', ARGV[i + 2], 'mem_cap', memory, 'compute_cap',
    compute, 'lease_slots', ARGV[i + 5], 'health', ARGV[i + 6], 'labels', ARGV[i + 7])
  redis.call('SADD', key .. ':devs', ARGV[i])
  redis.call('SADD', P .. ':devs', ARGV[i])
end
event('node', 'node', node, 'detail', 'registered')
return {'OK', inc, current}
