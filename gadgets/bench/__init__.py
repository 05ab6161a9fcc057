"""The benchmark: cases, solvers and peers run one by one in processes of their own, scores, tables and pictures."""
