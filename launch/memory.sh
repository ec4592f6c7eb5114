# To be sourced; `source .venv/bin/activate` does it, too. On a CPU XLA takes
# fresh memory at every step, and by small pages that costs half as much again as
# the step itself. Of glibc, from 2.35 on; nothing elsewhere.
export GLIBC_TUNABLES=${GLIBC_TUNABLES:+$GLIBC_TUNABLES:}glibc.malloc.hugetlb=1
