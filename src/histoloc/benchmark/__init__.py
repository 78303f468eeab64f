"""Methods x folds x seeds -> one table: the paper's Table 1, its ablation, or any choice of their rows."""
