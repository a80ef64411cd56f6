-- uses: base, lease
-- Nodes that were silent become suspect, then dead; the leases of a dead node end.
-- KEYS  P
-- ARGV  suspect ms, dead ms
-- reply OK node state node state…  (those that changed)
-- keys  P:nodes ZSET heartbeat ms, P:node:<n> HASH state, P:node:<n>:leases SET, and those of lease_release
local now = now_ms()
local changed = {}
local silent = redis.call('ZRANGEBYSCORE', P .. ':nodes', '-inf', fmt(now - tonumber(ARGV[1])), 'WITHSCORES')
for i = 1, #silent, 2 do
  local node = silent[i]
  local key = P .. ':node:' .. node
  local state = redis.call('HGET', key, 'state')
  local is_dead = tonumber(silent[i + 1]) <= now - tonumber(ARGV[2])
  local after = (is_dead and 'dead') or (state == 'ready' and 'suspect') or state
  if after ~= state then
    redis.call('HSET', key, 'state', after)
    changed[#changed + 1] = node
    changed[#changed + 1] = after
    event('node', 'node', node, 'detail', after)
    for _, id in ipairs(is_dead and redis.call('SMEMBERS', key .. ':leases') or {}) do
      if redis.call('HGET', P .. ':lease:' .. id, 'state') ~= 'quarantine' then end_lease(id, now, 'node dead') end
    end
  end
end
return {'OK', unpack(changed)}
