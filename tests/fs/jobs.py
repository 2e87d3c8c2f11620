"""Shell scripts of what people do in a workspace; each says little, and fails if anything does."""

GIT = """
set -e
FILES=${FILES:-40}
export GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b
export GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
git init -q repo
cd repo
for i in $(seq $FILES); do mkdir -p d$((i % 7)); echo "$i" > d$((i % 7))/f$i; done
git add .
git commit -q -m one
git checkout -q -b side
for i in $(seq $((FILES / 2))); do echo more >> d$((i % 7))/f$i; done
git commit -q -a -m two
git mv d0 e0
git commit -q -m three
git checkout -q master 2>/dev/null || git checkout -q main
git merge -q side
git gc -q --aggressive
git fsck --strict
cd ..
git clone -q repo copy
cd copy
git log --oneline | wc -l
git worktree add -q ../tree HEAD
test -z "$(git status --porcelain)"
cd ../tree
git stash list
rm -rf e0
git checkout -q -- e0
git status --porcelain
"""

BUILD = """
set -e
FILES=${FILES:-30}
mkdir src
for i in $(seq $FILES); do
    echo "int f$i(int x) { return x + $i; }" > src/f$i.c
    echo "int f$i(int x);" >> src/all.h
done
{
    echo '#include <stdio.h>'
    echo '#include "all.h"'
    echo 'int main(void) { int n = 0;'
    for i in $(seq $FILES); do echo "n += f$i(1);"; done
    echo 'printf("%d ", n); return 0; }'
} > src/main.c
cat > Makefile <<'END'
objects = $(patsubst src/%.c,out/%.o,$(wildcard src/*.c))
prog: $(objects)
	cc -o $@ $^
out/%.o: src/%.c
	@mkdir -p out
	cc -c -MD -o $@ $<
END
make -s -j4
./prog
touch src/f3.c
make -j4 | grep -c 'cc -c'
ar rcs lib.a out/f*.o
mv prog prog2
./prog2
"""


#: the parts that touch files, for where a process takes seconds
BRIEF_GIT = """
set -e
export GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b
export GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
git init -q repo
cd repo
mkdir d
for i in 1 2 3 4 5 6 7 8; do echo "$i" > d/f$i; done
git add .
git commit -q -m one
git mv d e
git commit -q -m two
git reset -q --hard HEAD~1
git repack -a -d -q
git fsck --strict
git status --porcelain
cat d/*
"""
