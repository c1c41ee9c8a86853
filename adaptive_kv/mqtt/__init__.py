"""Publishes over MQTT what this node is and does. Nothing here can delay a token."""
