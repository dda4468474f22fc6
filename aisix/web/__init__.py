"""Stage 1: the request arrives. Tornado handlers of the proxy, admin and metrics listeners."""
