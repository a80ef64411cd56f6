-- Shared by scripts that say "uses: delete"; needs base. The last step of a lease: its capacity returns.
-- It is 0 - x and not -x, because minus zero would print as "-0", which the server takes for no integer.

local function delete_lease(id)
  local key = P .. ':lease:' .. id
  local lease = redis.call('HMGET', key, 'tok', 'node', 'devs', 'tenant')
  local compute = 0
  for device, memory, share, mask in string.gmatch(lease[3], '([^,;]+),(%d+),(%d+),(%d+);') do
    local dev = P .. ':dev:' .. device
    compute = compute + tonumber(share)
    redis.call('SREM', dev .. ':leases', id)
    redis.call('HINCRBY', dev, 'mem_used', fmt(0 - tonumber(memory)))
    redis.call('HINCRBY', dev, 'compute_used', fmt(0 - tonumber(share)))
    local left = redis.call('HGET', dev, 'mask')
    redis.call('HSET', dev, 'mask', fmt(bit.band(tonumber(left), bit.bnot(tonumber(mask)))))
    if redis.call('HINCRBY', dev, 'nlease', -1) == 0 then redis.call('HSET', dev, 'mode', 'free') end
  end
  local tenant = P .. ':tenant:' .. lease[4]
  if lease[4] ~= '' and redis.call('HINCRBY', tenant, 'used', fmt(0 - compute)) == 0
    and redis.call('HEXISTS', tenant, 'max') == 0 then
    redis.call('DEL', tenant)
  end
  redis.call('SREM', P .. ':node:' .. lease[2] .. ':leases', id)
  redis.call('ZREM', P .. ':quar', id)
  redis.call('DEL', key)
  redis.call('SET', P .. ':ended:' .. id, lease[1], 'PX', '600000')
  event('confirm', 'lease', id, 'node', lease[2])
end
