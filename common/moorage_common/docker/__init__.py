"""The Docker Engine: its HTTP API, containers, logs, and which containers are an app's."""
