"""The wire to the upstream: libcurl behind a small port."""
