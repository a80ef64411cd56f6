"""The only doors to aiokafka and redis: foreign words and errors are translated here."""
