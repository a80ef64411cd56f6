// Reads one partition without joining a consumer group.
//
// kafkajs offers groups only, so this stands on its inner cluster and broker objects. They are no public interface,
// which is why package.json pins the version to the digit.

import { createRequire } from "node:module";

const require = createRequire(import.meta.url);
const Cluster = require("kafkajs/src/cluster");
const defaultSocketFactory = require("kafkajs/src/network/socketFactory");
const { createLogger, LEVELS } = require("kafkajs/src/loggers");
const consoleLogs = require("kafkajs/src/loggers/console");

export class PartitionReader {
  constructor({ brokers, clientId, topic, partition }) {
    this.topic = topic;
    this.partition = partition;
    this.offset = null;
    this.cluster = new Cluster({
      brokers,
      clientId,
      logger: createLogger({ level: LEVELS.ERROR, logCreator: consoleLogs }),
      socketFactory: defaultSocketFactory(),
      connectionTimeout: 5000,
      requestTimeout: 30000,
      enforceRequestTimeout: true,
      metadataMaxAge: 300000,
      allowAutoTopicCreation: false,
      retry: { retries: 5 },
    });
  }

  /** Connect, and stand at the end of the partition: what is appended from now on will be read. */
  async open() {
    await this.cluster.connect();
    await this.cluster.addTargetTopic(this.topic);
    const [{ partitions }] = await this.cluster.fetchTopicsOffset([
      { topic: this.topic, fromBeginning: false, partitions: [{ partition: this.partition }] },
    ]);
    this.offset = BigInt(partitions[0].offset);
  }

  /** The records that were appended since; waits for the first of them, at most maxWaitMs. */
  async poll(maxWaitMs) {
    const leaders = this.cluster.findLeaderForPartitions(this.topic, [this.partition]);
    const broker = await this.cluster.findBroker({ nodeId: Object.keys(leaders)[0] });
    const { responses } = await broker.fetch({
      maxWaitTime: maxWaitMs,
      minBytes: 1,
      maxBytes: 10_485_760,
      isolationLevel: 0,
      topics: [
        {
          topic: this.topic,
          partitions: [
            {
              partition: this.partition,
              currentLeaderEpoch: -1,
              fetchOffset: this.offset.toString(),
              logStartOffset: -1,
              maxBytes: 10_485_760,
            },
          ],
        },
      ],
    });
    const fetched = responses.flatMap(({ partitions }) => partitions).flatMap(({ messages }) => messages);
    // A batch is delivered whole, also when the position lies within it.
    const fresh = fetched.filter(({ offset }) => BigInt(offset) >= this.offset);
    if (fresh.length > 0) this.offset = BigInt(fresh[fresh.length - 1].offset) + 1n;
    return fresh;
  }

  async close() {
    await this.cluster.disconnect();
  }
}
