-- uses: base
-- What an operator or the planner wants of a node: ready, draining or cordoned. It is kept over deaths of the agent.
-- A downgrade raises the gen of the node's devices, so that plans under way turn stale.
-- KEYS  P
-- ARGV  node, state
-- reply OK | GONE | NO state
-- keys  P:node:<n> HASH state, hold, P:node:<n>:devs SET, P:dev:<id> HASH gen
local node, after = ARGV[1], ARGV[2]
local key = P .. ':node:' .. node
local state = redis.call('HGET', key, 'state')
if not state then return {'GONE'} end
if state == after then return {'OK'} end
local hold = after ~= 'ready' and after or ''
if state == 'dead' then
  redis.call('HSET', key, 'hold', hold)
  return {'OK'}
end
local edges = {draining = {ready = 1, suspect = 1}, cordoned = {draining = 1}, ready = {draining = 1, cordoned = 1}}
if not edges[after] or not edges[after][state] then return {'NO', state} end
redis.call('HSET', key, 'state', after, 'hold', hold)
if after ~= 'ready' then
  local gen = next_token(now_ms())
  for _, device in ipairs(redis.call('SMEMBERS', key .. ':devs')) do
    redis.call('HSET', P .. ':dev:' .. device, 'gen', gen)
  end
end
event('node', 'node', node, 'detail', after)
return {'OK'}
