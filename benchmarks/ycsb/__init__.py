"""The YCSB core workloads A to F by their published definitions, against kvshard, redis and etcd in the same language."""
