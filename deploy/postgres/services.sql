-- The services' databases of the reference plan; run once, when the cluster is made.
CREATE DATABASE trading_engine_db;
CREATE DATABASE ai_decision_db;
CREATE DATABASE analytics_db;
CREATE DATABASE api_gateway_db;
CREATE DATABASE orchestrator_db;
