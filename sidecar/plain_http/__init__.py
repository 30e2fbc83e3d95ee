"""A plain HTTP/1.1 server for the few who ask beside gateways: probes, scrapers, the supervisor, the application here.

Every process of a sidecar has one; aiohttp would be a third of its memory and of its time to be ready.
"""
