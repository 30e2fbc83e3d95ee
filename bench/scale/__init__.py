"""What many writers cost one Redis, or a cluster: real messages of real cores, over connections of their own."""
