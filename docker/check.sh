#!/usr/bin/env bash
# Builds Dockerfile.server and Dockerfile.gadgetron without a container engine or an image registry, and runs what they give.
#   docker/check.sh [FOLDER] [server|gadgetron]     FOLDER (default build/containers) takes about 12 GB, and can be deleted afterwards
# Needs root and Debian's buildah, runc, debootstrap. The base is Debian 12 with Python from debootstrap; Gadgetron's image has a stand-in.
# What pip is told on this machine (index, local wheels, certificates) holds for the builds; MIRROR names another Debian mirror.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(realpath -m "${1:-build/containers}")
mkdir -p "$work"
for program in buildah runc debootstrap python3; do
    command -v "$program" > /dev/null || { echo "error: $program is not installed" >&2; exit 1; }
done
store() { buildah --root "$work/storage" --runroot "$work/run" --storage-driver vfs "$@"; }
export TMPDIR=$work/tmp
mkdir -p "$TMPDIR"

say() { printf '\n== %s\n' "$*"; }

if ! store inspect --type image localhost/base > /dev/null 2>&1; then
    say "base: Debian 12 with Python"
    [ -e "$work/bookworm/usr/bin/python3" ] || debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates \
        bookworm "$work/bookworm" "${MIRROR:-http://deb.debian.org/debian}" > "$work/debootstrap.log"
    rm -rf "$work"/bookworm/var/cache/apt/archives/*.deb "$work"/bookworm/var/lib/apt/lists/*
    container=$(store from scratch)
    store add "$container" "$work/bookworm" / > /dev/null
    store commit --rm "$container" localhost/base > /dev/null
fi

# pip's settings as one file, and read-only mounts of the files and folders they name.
python3 docker/pip_settings.py "$work/pip.conf" > "$work/pip_mounts"
index=$(sed -n 's/^index-url = //p' "$work/pip.conf")
build() {  # NAME FILE BASE [ARGUMENT…]
    local name=$1 file=$2 base=$3
    shift 3
    local mounts=(--volume "$work/pip.conf:/etc/pip.conf:ro")
    while read -r path; do mounts+=(--volume "$path:$path:ro"); done < "$work/pip_mounts"
    say "build $name from $file"
    store build --isolation chroot --format docker --pull-never "${mounts[@]}" \
        --build-arg BASE="$base" --build-arg TORCH_INDEX="${index:-https://pypi.org/simple}" "$@" -f "$file" -t "localhost/$name" . > "$work/$name.log" 2>&1 \
        || { tail -n 40 "$work/$name.log" >&2; exit 1; }
    store images --format "$name: {{.Size}}" "localhost/$name"
}

container="" from=""
stop() {
    [ -z "$container" ] || runc --root "$work/runc" delete --force "$container" || true
    [ -z "$from" ] || store rm "$from" > /dev/null || true
    container="" from=""
}
trap stop EXIT
printf '127.0.0.1 localhost inr\n' > "$work/hosts"
start() {  # NAME: the image's own user, environment, entry point and command, on a read-only root
    local name=$1 bundle=$work/bundle-$1 root
    mkdir -p "$bundle"
    from=$(store from --pull-never "localhost/$name")
    root=$(store mount "$from")
    store inspect --type image "localhost/$name" | python3 docker/bundle.py "$root" "$work/hosts" "${@:2}" > "$bundle/config.json"
    container=inr-$name-$$
    runc --root "$work/runc" run --detach --bundle "$bundle" "$container" > "$work/$name.run.log" 2>&1 < /dev/null
}
inside() { runc --root "$work/runc" exec "$container" "$@" < /dev/null; }
expect_read_only() {
    [ "$(inside id -u)" = "$1" ] || { echo "error: runs as $(inside id -u), not as $1" >&2; exit 1; }
    if inside touch /opt/written 2> "$work/touch.log"; then echo "error: the root file system can be written" >&2; exit 1; fi
    grep -q 'Read-only file system' "$work/touch.log" || { cat "$work/touch.log" >&2; exit 1; }
    echo "user $1, root file system read-only"
}
put() { runc --root "$work/runc" exec "$container" sh -c 'cat > "$1"' put "$2" < "$1"; }
scan() { inside gadgetron-inr --quiet simulate cardiac /tmp/scan.h5 --matrix 32 --frames 8 --coils 3; }
replay() {
    scan
    inside gadgetron-inr --quiet replay /tmp/scan.h5 -c cardiac.xml -o /tmp/out.h5 -s solver=cg_sense -t 60000
}

check_server() {
    build server docker/Dockerfile.server localhost/base
    say "run server"
    start server
    expect_read_only 10001
    replay
    local health
    mapfile -t health < <(store inspect --type image localhost/server \
        | python3 -c 'import json, sys; print(*json.load(sys.stdin)["Docker"]["config"]["Healthcheck"]["Test"][1:], sep="\n")')
    inside "${health[@]}"
    echo "health check answered"
    stop
}

check_gadgetron() {
    build stand-in docker/Dockerfile.stand-in localhost/base
    build gadgetron docker/Dockerfile.gadgetron localhost/stand-in --build-arg VARIANT=cpu --build-arg EXTRAS=metrics
    say "run the resident node in Gadgetron's environment"
    # As the node of compose.yaml is started.
    start gadgetron gadgetron-inr serve --node --host 127.0.0.1 --port 18000 --metrics-host 0.0.0.0 --metrics-port 9464
    expect_read_only 1000
    inside python -m pip --no-cache-dir list --format=freeze > "$work/gadgetron.versions"
    for version in numpy==1.26.4 scipy==1.13.1 ismrmrd==1.14.0 gadgetron==1.4.1; do
        grep -x "$version" "$work/gadgetron.versions" || { echo "error: $version was changed" >&2; exit 1; }
    done
    say "scans through the installed chains: a node started anew, the resident one"
    put tests/wire/stand_in.py /tmp/stand_in.py
    put docker/through_gadgetron.py /tmp/through_gadgetron.py
    scan
    inside python /tmp/through_gadgetron.py /opt/conda/envs/gadgetron /tmp/scan.h5 /tmp/out.h5 inr_cardiac.xml inr_cardiac_connect.xml
    inside gadgetron-inr replay -a 127.0.0.1 -Q gadgetron::version -p 18000 -t 15000
    inside python -c 'import urllib.request as u; print("healthz:", u.urlopen("http://127.0.0.1:9464/healthz", timeout=9).read().decode().strip())'
    stop
}

for image in ${2:-server gadgetron}; do "check_$image"; done
say "built and run: ${2:-server gadgetron}"
