#!/usr/bin/env bash
# Fetches Fashion-MNIST from Debian's package `dataset-fashion-mnist` and leaves its four .gz files in a folder (first
# argument, else $FASHION_MNIST_DIR, else data/fashion-mnist). Needs apt-get and dpkg-deb; neither root nor an
# installation. The data are trusted by the checksums of their decompressed contents, whatever the package's revision.
set -euo pipefail

package=dataset-fashion-mnist
known_version='0.0~git20200523.55506a9-1'
known_sha256=39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0
folder=${1:-${FASHION_MNIST_DIR:-data/fashion-mnist}}

checksums() {
    cat <<'SUMS'
c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888  train-images-idx3-ubyte
bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9  train-labels-idx1-ubyte
5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b  t10k-images-idx3-ubyte
0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34  t10k-labels-idx1-ubyte
SUMS
}

fail() {
    printf 'fashion_mnist.sh: %s\n' "$@" >&2
    exit 1
}

other_ways() {
    fail "$1" \
        "Other ways: 'apt-get install $package' as root, or put the four .gz files of Fashion-MNIST into $folder," \
        "or, where the network allows it, do nothing: FashionMNISTDataModule fetches them by itself."
}

sha256_of() { sha256sum | cut -d ' ' -f 1; }

# Checks the four .gz files in $1; names the first wrong one on stderr.
verify() {
    local expected name found
    while read -r expected name; do
        found=$(gzip -dc -- "$1/$name.gz" 2>/dev/null | sha256_of) || found="none, $name.gz is missing or broken"
        if [[ $found != "$expected" ]]; then
            echo "fashion_mnist.sh: $1/$name.gz: expected sha256 $expected of its contents, found $found" >&2
            return 1
        fi
    done < <(checksums)
}

# apt-get with package lists of its own below $scratch, for machines without lists; works without root.
private_apt_get() {
    mkdir -p "$scratch/lists/partial" "$scratch/cache/archives/partial"
    apt-get -qq -o "Dir::State::lists=$scratch/lists" -o "Dir::Cache=$scratch/cache" -o APT::Sandbox::User=root "$@"
}

download() {
    apt-get -qq -o APT::Sandbox::User=root download "$package" 2>"$scratch/apt.log" && return
    echo "fashion_mnist.sh: apt-get does not know $package yet; fetching package lists for this download only"
    private_apt_get update 2>>"$scratch/apt.log" && private_apt_get download "$package" 2>>"$scratch/apt.log"
}

if [[ -e $folder/train-images-idx3-ubyte.gz ]] && verify "$folder"; then
    echo "fashion_mnist.sh: $folder holds Fashion-MNIST already"
    exit 0
fi
for tool in apt-get dpkg-deb gzip sha256sum; do
    command -v "$tool" >/dev/null || other_ways "$tool is not on this machine, so Debian's package cannot be fetched."
done

scratch=$(mktemp -d)
trap 'rm -rf -- "$scratch"' EXIT

echo "fashion_mnist.sh: fetching Debian's $package (31 MB)"
(cd "$scratch" && download) || { cat "$scratch/apt.log" >&2; other_ways "apt-get could not download $package."; }
archives=("$scratch/$package"_*.deb)
archive=${archives[0]}
version=$(dpkg-deb --field "$archive" Version)
found=$(sha256_of <"$archive")
if [[ $version == "$known_version" ]]; then
    [[ $found == "$known_sha256" ]] || fail "$package $version: expected sha256 $known_sha256, found $found"
else
    echo "fashion_mnist.sh: $package $version is another revision than $known_version; its contents are checked below"
fi

dpkg-deb -x "$archive" "$scratch/root"
extracted=$scratch/root/usr/share/datasets/fashion-mnist
verify "$extracted" || fail "the package's files are not Fashion-MNIST"
mkdir -p -- "$folder"
# By way of a temporary name: another process that looks meanwhile sees whole files only.
while read -r _ name; do
    cp -- "$extracted/$name.gz" "$folder/.$name.gz.$$.part"
    mv -f -- "$folder/.$name.gz.$$.part" "$folder/$name.gz"
done < <(checksums)
echo "fashion_mnist.sh: Fashion-MNIST is in $folder"
