"""A semantic cache: answers that were given once are given again to questions that want the same answer.

`policy` says what may be kept and for how long, `normalize` and `verifier` which questions are the same, `evidence` how
sure that is, and `cache.SemanticCache` puts them before a store of `stores/`.
"""
