"""Clusters on Ray: real multi-node Ray on one host."""
