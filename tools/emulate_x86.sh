#!/bin/bash
# Runs the kernel tests, and whole models bit for bit, on x86 processors that Bochs emulates: one with AVX-512
# VNNI, one with AMX too. For Debian 12 or later on x86-64; about 40 minutes on two cores, 4 GB of disk.
#   tools/emulate_x86.sh [DIRECTORY]      # default target/emulated; all working files go there
# MODELS names the processors (bochs --help cpu), LONG=1 adds the three longest tests, LIMIT is seconds per model.
# Exit status 0 if every test passed and every bit agreed on every model. Needs bochs_amx.patch beside it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
repo=$(git -C "$PWD" rev-parse --show-toplevel)
mkdir -p "${1:-$repo/target/emulated}"
work=$(cd "${1:-$repo/target/emulated}" && pwd)
models=${MODELS:-corei7_icelake_u sapphire_rapids}
say() { echo "== $*"; }

say "packages"
packages="g++ make patch curl xz-utils cpio grub-pc-bin grub-common xorriso mtools busybox-static"
missing=$(for p in $packages; do dpkg -s "$p" >/dev/null 2>&1 || echo "$p"; done)
if [ -n "$missing" ]; then
    [ "$(id -u)" = 0 ] || { echo "please install:" $missing; exit 2; }
    apt-get update -qq && apt-get install -qq -y --no-install-recommends $missing
fi

say "Bochs 3.0 of Debian 13, patched"
cd "$work"
get() { # file sha256
    [ -f "$1" ] || curl -sSfL -o "$1" "https://deb.debian.org/debian/pool/main/b/bochs/$1"
    echo "$2  $1" | sha256sum -c --quiet
}
get bochs_3.0+dfsg.orig.tar.xz 78f6c73d4a6472d5130a87ab9dc306d02c7c71ed8e25b3a8ef642e2a7acd282b
get bochsbios_3.0+dfsg-1_all.deb 13f8f4bdd9bb5c07378b7e39042cb631ebdd41d00b0f1a3091caab17ca946a5b
if [ ! -x bochs-3.0/bochs ]; then
    rm -rf bochs-3.0 && tar -xf bochs_3.0+dfsg.orig.tar.xz
    (
        cd bochs-3.0
        patch -s -p1 < "$here/bochs_amx.patch"
        CFLAGS=-O2 CXXFLAGS="-O2 -march=native" ./configure --with-nogui --enable-cpu-level=6 --enable-x86-64 --enable-fpu \
            --enable-avx --enable-evex --enable-amx --enable-protection-keys --enable-all-optimizations --disable-logging \
            --disable-debugger --disable-debugger-gui --disable-docbook --disable-gameport --disable-cdrom > configure.log 2>&1
        make -j"$(nproc)" > make.log 2>&1 || { tail make.log; exit 1; }
    )
fi

say "kernel, BIOS"
if [ ! -d debs ]; then
    mkdir -p debs.new
    (
        cd debs.new
        linux=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-.*\)/\1/p' | head -1)
        apt-get download -qq "$linux" vgabios
        for deb in *.deb ../bochsbios*.deb; do dpkg -x "$deb" .; done
    )
    mv debs.new debs
fi
ls debs/boot/vmlinuz-*

say "tests and program, static"
cargo() { (cd "$repo" && CARGO_TARGET_DIR="$work/cargo" RUSTFLAGS='-C target-feature=+crt-static' command cargo "$@"); }
target=x86_64-unknown-linux-gnu # named, so that build scripts and macros are not static
tests=$(cargo test --locked --release --no-run --target $target -p qberta-kernels --tests --message-format json \
    | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p')
cargo build --locked --release --target $target -p qberta
qberta=$work/cargo/$target/release/qberta

say "artefacts, and what the host answers on scalar code"
rm -rf models root && mkdir -p models/long models/heads root/bin root/a root/want
"$qberta" demo --rows 1 --keep models/gloss > /dev/null
printf 'name = "codes"\nbase = "dynamic"\n[attention]\nscores = "int8"\ncontext = "int8"\n' > codes.toml
printf 'name = "half"\n[linears]\nweight = "bf16"\n[words]\nweight = "bf16"\n' > half.toml
gloss=$repo/testdata/gloss golden=$repo/testdata/golden
while read -r out model options; do
    "$qberta" quantize "$model" -o "models/$out" --recipe $options > models/log 2>&1 || { cat models/log; exit 1; }
done << LIST
gloss/static models/gloss/float static --calibration $gloss/calibration.jsonl
gloss/w4a8 models/gloss/float w4a8
gloss/codes models/gloss/float codes.toml
gloss/heads models/gloss/float static-attention --calibration $gloss/calibration.jsonl
gloss/half models/gloss/float half.toml
long/int8 $golden/v3-long dynamic
long/codes $golden/v3-long codes.toml
heads/int8 $golden/v1-talking-head dynamic
LIST
head -n 4 "$gloss/validation.jsonl" > models/gloss/rows
head -n 4 "$golden/v3-long/expected.jsonl" | sed 's/,"raw":.*/}/' > models/long/rows
sed 's/,"raw":.*/}/' "$golden/v1-talking-head/expected.jsonl" > models/heads/rows
for dir in models/*/*/; do
    name=$(echo "$dir" | cut -d/ -f2,3 | tr / .)
    cp -r "$dir" "root/a/$name"
    cp "$(dirname "$dir")/rows" "root/a/$name.rows"
    "$qberta" predict "$dir" --raw --input "root/a/$name.rows" --isa scalar > "root/want/$name" 2> models/err \
        || { cat models/err; exit 1; }
done

say "image"
cp /bin/busybox root/bin/ && cp "$qberta" root/ && n=0
for test in $tests; do cp "$test" "root/test$((n += 1))"; done
strip root/qberta root/test*
cat > root/init <<'INIT'
#!/bin/busybox sh
/bin/busybox mkdir -p /proc /dev /run /tmp && /bin/busybox mount -t proc proc /proc && /bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin && export PATH=/bin
exec > /dev/ttyS0 2>&1 < /dev/null
echo "### $(uname -r) $(grep -m1 'model name' /proc/cpuinfo)"
isas=$(/test1 every_isa_either --nocapture | tee /dev/ttyS0 | sed -n 's/.*isa \([a-z0-9]*\): kernel tests run.*/\1/p')
cd /a
for isa in $isas; do
    [ $isa != scalar ] || continue # the host has answered on it
    echo "ISA $isa"
    export QBERTA_ISA=$isa
    for a in $(ls | grep -v rows$); do
        case $a in *.float) ;; *) /qberta verify $a --threads 1; echo "RC $? verify $a $isa" ;; esac
        /qberta predict $a --raw --input $a.rows --threads 3 > /run/out 2> /run/err && cmp /run/out /want/$a || { cat /run/err; false; }
        echo "RC $? predict $a $isa"
    done
done
unset QBERTA_ISA
long="a_sequence_of_4096 tanh_erf_and_sigmoid_are the_head_sizes_and_lengths"
for test in /test*; do $test --test-threads 1 $(for t in $long; do echo --skip $t; done); echo "RC $? $test"; done
[ ! -e /long ] || for t in $long; do /test1 $t; echo "RC $? /test1 $t"; done
echo "### END"
while sleep 60; do :; done
INIT
chmod +x root/init
[ -z "${LONG:-}" ] || touch root/long
rm -rf iso && mkdir -p iso/boot/grub && cp debs/boot/vmlinuz-* iso/boot/vmlinuz
(cd root && find . | cpio -o -H newc --quiet) > iso/boot/initrd
# acpi=off: its SMI stops Bochs 3.0 on Sapphire Rapids. 580 is FSRM: Linux takes ERMS from a processor whose
# IA32_MISC_ENABLE lacks FAST_STRING, as Bochs's does, and its memmove is wrong with FSRM but no ERMS.
cat > iso/boot/grub/grub.cfg <<'GRUB'
set timeout=0
linux /boot/vmlinuz console=ttyS0,115200 acpi=off clearcpuid=580 mitigations=off tsc=reliable random.trust_cpu=on nowatchdog panic=-1 loglevel=4
initrd /boot/initrd
boot
GRUB
grub-mkrescue -o disk.img iso > iso.log 2>&1 || { cat iso.log; exit 1; }
truncate -s %516096 disk.img # whole cylinders of 16 heads and 63 sectors

say "emulation of $models"
run() { # model
    cat > "$1.rc" <<RC
config_interface: textconfig
display_library: nogui
cpu: model=$1, count=1, ips=100000000, reset_on_triple_fault=0
memory: guest=1536, host=1536
romimage: file=debs/usr/share/bochs/BIOS-bochs-latest, options=fastboot
vgaromimage: file=debs/usr/share/vgabios/vgabios.bin
ata0-master: type=disk, mode=volatile, path=disk.img
boot: disk
com1: enabled=1, mode=file, dev=$1.serial
clock: sync=none, time0=utc
log: $1.log
panic: action=fatal
RC
    : > "$1.serial"
    bochs-3.0/bochs -q -f "$1.rc" > "$1.out" 2>&1 < /dev/null &
    local pid=$! start=$SECONDS
    trap "kill $pid 2>/dev/null" EXIT
    while kill -0 $pid 2>/dev/null && ! grep -aq '^### END' "$1.serial" && [ $((SECONDS - start)) -lt "${LIMIT:-5400}" ]; do sleep 5; done
    kill $pid 2>/dev/null || true
    wait $pid 2>/dev/null || true
    echo "$1: $((SECONDS - start)) s" > "$1.time"
}
for model in $models; do run "$model" & done
wait
bad=0
for model in $models; do
    log=$model.serial
    say "$(cat "$model.time")"
    tr -d '\r' < "$log" | grep -aE '^### |^ISA |isa .*:|^test result|FAILED|panicked|differ|^RC [1-9]' || true
    passed=$(grep -acE '^RC 0 ' "$log" || true)
    wanted=$(grep -q sapphire <<< "$model" && echo amxint8 || echo avx512vnni)
    word="none failed"
    ! grep -aqE '^RC [1-9]' "$log" || word="some FAILED"
    grep -aq "^ISA $wanted" "$log" || word="but $wanted was NOT there"
    grep -aq '^### END' "$log" || word="it did NOT come to its end: see $work/$log and $model.out"
    [ "$word" = "none failed" ] || bad=1
    echo "$model: $passed steps passed, $word"
done
exit $bad
