// What kafkajs sees of a broker, as JSON: node log_session.mjs PACKAGES BOOTSTRAP TOPIC

import { createRequire } from "node:module";

const [packages, bootstrap, topic] = process.argv.slice(2);
const { Kafka, CompressionTypes, logLevel } = createRequire(`${packages}/`)("kafkajs");

const kafka = new Kafka({ clientId: "conformance", brokers: bootstrap.split(","), logLevel: logLevel.NOTHING });
const admin = kafka.admin();
const producer = kafka.producer({ idempotent: true, allowAutoTopicCreation: false });
const impatient = kafka.producer({ allowAutoTopicCreation: false, retry: { retries: 0 } });

async function errorOf(promise) {
  try {
    return await promise;
  } catch (error) {
    return error.errors?.[0]?.type ?? error.type ?? error.name;
  }
}

try {
  await admin.connect();
  await producer.connect();
  await impatient.connect();
  const configEntries = [{ name: "message.timestamp.type", value: "LogAppendTime" }];
  const wish = { topics: [{ topic, numPartitions: 2, configEntries }], waitForLeaders: true };
  const created = [await errorOf(admin.createTopics(wish)), await errorOf(admin.createTopics(wish))];
  const messages = [1, 2, 3].map((number) => ({ key: "k", value: `v${number}`, headers: { h: "x" }, partition: 0 }));
  const sent = [];
  for (const compression of [CompressionTypes.None, CompressionTypes.GZIP]) {
    const [answer] = await producer.send({ topic, messages, compression, acks: -1 });
    sent.push([answer.partition, answer.errorCode, answer.baseOffset, answer.logAppendTime !== "-1"]);
  }
  const resource = { type: 2, name: topic };
  await admin.alterConfigs({ resources: [{ ...resource, configEntries: [{ name: "retention.ms", value: "60000" }] }] });
  const description = await admin.describeConfigs({ resources: [{ ...resource, configNames: ["retention.ms"] }] });
  await admin.deleteTopicRecords({ topic, partitions: [{ partition: 0, offset: "2" }] });
  const offsets = await admin.fetchTopicOffsets(topic);
  const byTime = await admin.fetchTopicOffsetsByTimestamp(topic, 1);
  const grown = await admin.createPartitions({ topicPartitions: [{ topic, count: 3 }] });
  const committed = await admin.fetchOffsets({ groupId: `${topic}-group`, topics: [topic] });
  const { brokers } = await admin.describeCluster();
  const unknown = await errorOf(impatient.send({ topic: `${topic}-no`, messages, acks: -1 }));
  await admin.deleteTopics({ topics: [topic] });
  console.log(
    JSON.stringify({
      created,
      sent,
      retention: description.resources[0].configEntries.map(({ configName, configValue }) => [configName, configValue]),
      offsets: offsets.map(({ partition, offset, high, low }) => [partition, offset, high, low]).sort(),
      byTime: byTime.map(({ partition, offset }) => [partition, offset]).sort(),
      grown,
      committed: committed[0].partitions.map(({ partition, offset, metadata }) => [partition, offset, metadata]).sort(),
      brokers: brokers.length,
      unknown,
    }),
  );
} finally {
  await producer.disconnect();
  await impatient.disconnect();
  await admin.disconnect();
}
