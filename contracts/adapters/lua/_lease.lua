-- Shared by scripts that say "uses: lease"; needs base. What a lease is, and how it ends.

-- tok, state, node, revoke_at of a lease whose token is current; else nil and the refusal.
local function current_lease(id, token)
  local lease = redis.call('HMGET', P .. ':lease:' .. id, 'tok', 'state', 'node', 'revoke_at')
  if not lease[1] then return nil, 'GONE' end
  if lease[1] ~= token then return nil, 'FENCED' end
  if lease[2] == 'quarantine' then return nil, 'GONE' end
  return lease
end

local function expires_at(id)
  return tonumber(redis.call('ZSCORE', P .. ':lexp', id) or '0')
end

-- Keep the moment since when a partition is not held by the lease that is wanted; none when it is, or nobody wants it.
local function settle(topic, partition, now)
  local root = P .. ':part:' .. topic
  local want = redis.call('HGET', root .. ':want', partition)
  local own = redis.call('HGET', root .. ':own', partition)
  local owner = own and string.match(own, '^[^,]+') or nil
  if (want or nil) == owner then
    redis.call('HDEL', root .. ':since', partition)
    if not want and redis.call('EXISTS', root .. ':want', root .. ':own', root .. ':since') == 0 then
      redis.call('SREM', P .. ':topics', topic)
    end
  else
    redis.call('HSETNX', root .. ':since', partition, fmt(now))
  end
end

-- Nothing is wanted of this lease any more. The partitions stay known as unsettled until somebody is wanted for them.
local function clear_wants(id, now)
  local key = P .. ':lease:' .. id .. ':want'
  for _, name in ipairs(redis.call('SMEMBERS', key)) do
    local topic, partition = string.match(name, '^(.+)/(%d+)$')
    redis.call('HDEL', P .. ':part:' .. topic .. ':want', partition)
    redis.call('HSETNX', P .. ':part:' .. topic .. ':since', partition, fmt(now))
  end
  redis.call('DEL', key)
end

-- Free the partitions at once; keep the device capacity in quarantine until the processes are confirmed gone.
local function end_lease(id, now, reason)
  local key = P .. ':lease:' .. id
  local freed = {}
  for _, name in ipairs(redis.call('SMEMBERS', key .. ':parts')) do
    local topic, partition = string.match(name, '^(.+)/(%d+)$')
    redis.call('HDEL', P .. ':part:' .. topic .. ':own', partition)
    settle(topic, partition, now)
    freed[topic] = (freed[topic] and freed[topic] .. ',' or '') .. partition
  end
  redis.call('DEL', key .. ':parts')
  clear_wants(id, now)
  redis.call('HSET', key, 'state', 'quarantine', 'ended', fmt(now), 'reason', reason)
  redis.call('ZREM', P .. ':lexp', id)
  redis.call('ZADD', P .. ':quar', fmt(now), id)
  for topic, partitions in pairs(freed) do
    event('release', 'lease', id, 'topic', topic, 'partitions', partitions)
  end
  event('end', 'lease', id, 'node', redis.call('HGET', key, 'node'), 'detail', reason)
end
