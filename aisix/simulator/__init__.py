"""A stand-in for Azure OpenAI and for the Entra ID token endpoint.

`python -m aisix.simulator` starts it as a program; `aisix.simulator.server.Simulator` starts it
inside a test. It exists so that the gateway can be demonstrated, tested and load-tested without
an Azure subscription, on every oddity the real service shows on the wire.

The package stands alone: it imports nothing else of `aisix` but the version, and nothing else
imports it. docs/simulator.md is its manual.
"""
