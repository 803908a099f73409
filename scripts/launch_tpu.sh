#!/usr/bin/env bash
# Starts a training on a Cloud TPU VM. Works with bash 3.2 too, the one of macOS.
set -euo pipefail

usage() {
    cat <<'END'
Usage: scripts/launch_tpu.sh --zone=ZONE --model_dir=gs://BUCKET/RUN --data_dir=gs://BUCKET/tensorflow_datasets [FLAG...]

Creates a Cloud TPU VM (or takes the one of that name), copies the project to it, installs
requirements-tpu.txt and requirements-tpu-nodeps.txt, checks the environment and starts
scripts/train.py in the background. Run it again at any time, after a preemption too: what is there is
used, and the training goes on from the newest checkpoint in --model_dir.

What to train
  --model_dir=gs://...    the run's folder: checkpoints, metrics, samples. Required.
  --data_dir=gs://...     the prepared TFDS data sets, or an absolute path on the VM. Required.
  --gin_file=FILE         experiment; default $GIN_FILE, else configs/hamgan_strong.gin
  --gin_param=BINDING     one more gin binding, e.g. "trainer.Trainer.batch_size = 512". May be repeated.
  --repository=PATH|URL   what to copy: a local git checkout, of which the last commit is copied, or the address
                          of a repository that the VM can clone. Default: the checkout this script is in.
Where
  --zone=ZONE             e.g. europe-west4-a. Required.
  --project=PROJECT       default: the one of `gcloud config`
  --name=NAME             of the TPU VM; default hamgan
  --type=TYPE             accelerator type; default v3-8. More than one host (v3-32) is a slice: the packages go to
                          all its hosts, the training runs on the first and reaches the others by the TPU's name.
  --version=IMAGE         runtime image; default: the plain Ubuntu one for the type; for a slice the image with
                          TensorFlow's server, tpu-vm-tf-VERSION-pod-pjrt. List: gcloud compute tpus tpu-vm versions list
  --spot                  create a spot VM: cheaper, may be taken away at any time
What to do
  --dry_run               print the commands, one per line, exactly as they would run, and run nothing
  --no_create             the VM exists: neither look for it nor create it
  --delete                wait until the training is over and delete the VM when it was successful
  --help                  this text

On the VM: ~/hamgan/source (the project), ~/hamgan/venv, ~/hamgan/train.log. The VM costs money until it is
deleted; the commands to follow the training, to stop it and to delete the VM are printed at the end.
END
}

note() { echo "$*" >&2; }

fail() {
    note "ERROR: $*"
    exit 2
}

# Words for a shell to read back as they are; those that need no quotes get none.
quote() {
    local word separator=""
    for word in "$@"; do
        printf '%s' "$separator"
        case "$word" in
        "" | *[!A-Za-z0-9_@%+=:,./-]*) printf "'%s'" "$(printf '%s' "$word" | sed "s/'/'\\\\''/g")" ;;
        *) printf '%s' "$word" ;;
        esac
        separator=" "
    done
}

# What is wrong with this machine stops a launch. A dry run runs nothing, so it only says it.
machine_fail() {
    [ "$dry_run" = yes ] || fail "$@"
    note "A launch would stop here: $*"
}

run() {
    if [ "$dry_run" = yes ]; then
        quote "$@"
        echo
    else
        note "+ $(quote "$@")"
        local status=0
        "$@" || status=$?
        if [ $status != 0 ]; then
            note "ERROR: this command ended with status $status, its message is above: $(quote "$@")"
            note "Launch again when the cause is gone: what is done is used. If there is a VM now, it costs money; delete it: $(quote "${delete_vm[@]}")"
            exit $status
        fi
    fi
}

here=$(cd "$(dirname "$0")/.." && pwd)
name=hamgan
zone=""
project=""
type=v3-8
image=""
model_dir=""
data_dir=""
gin_file=${GIN_FILE:-configs/hamgan_strong.gin}
gin_params=()
repository=$here
dry_run=no
create=yes
delete=no
spot=no

while [ $# -gt 0 ]; do
    flag=$1
    shift
    case "$flag" in
    --help | -h)
        usage
        exit 0
        ;;
    --dry_run) dry_run=yes ;;
    --no_create) create=no ;;
    --delete) delete=yes ;;
    --spot) spot=yes ;;
    --name | --zone | --project | --type | --version | --model_dir | --data_dir | --gin_file | --gin_param | --repository | \
        --name=* | --zone=* | --project=* | --type=* | --version=* | --model_dir=* | --data_dir=* | --gin_file=* | \
        --gin_param=* | --repository=*)
        case "$flag" in
        *=*)
            value=${flag#*=}
            flag=${flag%%=*}
            ;;
        *)
            [ $# -gt 0 ] || fail "$flag needs a value, but is the last word. Write $flag=VALUE."
            value=$1
            shift
            ;;
        esac
        [ -n "$value" ] || fail "$flag must not be empty. Write $flag=VALUE, or leave it out for its default."
        case "$value" in
        *$'\n'*) fail "$flag must be one line, got: $value" ;;
        esac
        case "$flag" in
        --name) name=$value ;;
        --zone) zone=$value ;;
        --project) project=$value ;;
        --type) type=$value ;;
        --version) image=$value ;;
        --model_dir) model_dir=$value ;;
        --data_dir) data_dir=$value ;;
        --gin_file) gin_file=$value ;;
        --gin_param) gin_params+=("$value") ;;
        --repository) repository=$value ;;
        esac
        ;;
    --dry_run=* | --no_create=* | --delete=* | --spot=*) fail "${flag%%=*} takes no value, got $flag. Write ${flag%%=*}, or leave it out." ;;
    -*) fail "unknown flag $flag. See: scripts/launch_tpu.sh --help" ;;
    *) fail "an argument without a flag name: $flag. Write --name=value. See: scripts/launch_tpu.sh --help" ;;
    esac
done

[[ $name =~ ^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$ ]] ||
    fail "--name must be small letters, digits and dashes, beginning with a letter, at most 63 of them; got '$name'."
[ -n "$zone" ] || fail "--zone is missing. Give one that has $type, e.g. --zone=europe-west4-a; list: gcloud compute tpus locations list"
[[ $type =~ ^(v2|v3|v4|v5litepod|v5p|v6e)-([1-9][0-9]*)$ ]] ||
    fail "--type must be an accelerator type like v3-8, v4-8, v5litepod-8, v5p-8 or v6e-8; got '$type'. List: gcloud compute tpus accelerator-types list --zone=$zone"
generation=${BASH_REMATCH[1]}
size=${BASH_REMATCH[2]}
[ -n "$model_dir" ] || fail "--model_dir is missing. Give the run's folder in a bucket, e.g. --model_dir=gs://BUCKET/hamgan_strong"
[[ $model_dir =~ ^gs://[^/]+/.+ ]] ||
    fail "--model_dir must be a folder in a bucket, gs://BUCKET/FOLDER, because the VM's disk goes with the VM; got '$model_dir'."
[ -n "$data_dir" ] || fail "--data_dir is missing. Give the folder with the prepared TFDS data sets, e.g. --data_dir=gs://BUCKET/tensorflow_datasets"
[[ $data_dir =~ ^(gs://[^/]+|/) ]] ||
    fail "--data_dir must be gs://BUCKET/FOLDER, or an absolute path on the VM; got '$data_dir'. A new VM has no data sets."

# In all generations a host has at most what '8' names: 8 cores up to v5p, 8 chips for v5litepod and v6e.
slice=no
[ "$size" -le 8 ] || slice=yes
if [ -z "$image" ] && [ $slice = yes ]; then
    tensorflow=$(sed -n 's/^tensorflow-tpu==\([0-9.]*\).*/\1/p' "$here/requirements-tpu.txt")
    image=tpu-vm-tf-$tensorflow-pod-pjrt
    note "--type=$type has several hosts: its image must bring the server of TensorFlow $tensorflow; taking --version=$image. If the zone"
    note "hasn't got it, choose one with -pod from: gcloud compute tpus tpu-vm versions list --zone=$zone"
elif [ -z "$image" ]; then
    case "$generation" in
    v5litepod) image=v2-alpha-tpuv5-lite ;;
    v5p) image=v2-alpha-tpuv5 ;;
    v6e) image=v2-alpha-tpuv6e ;;
    *) image="tpu-ubuntu2204-base" ;;
    esac
fi

case "$repository" in
*://* | git@*) clone=yes ;;
*) clone=no ;;
esac
archive=""
if [ $clone = no ]; then
    git_dir=$(git -C "$repository" rev-parse --absolute-git-dir 2>/dev/null) ||
        fail "--repository must be a git checkout or an address to clone, got '$repository'. In a copy without .git: git init, add and commit."
    # In .git, so that it is out of the way and the same at every launch.
    archive=$git_dir/launch_tpu.tar.gz
    for file in requirements-tpu.txt requirements-tpu-nodeps.txt setup.py scripts/train.py scripts/check_environment.py; do
        [ -f "$repository/$file" ] || fail "--repository must be this project, but $repository has no $file."
    done
    case "$gin_file" in
    gs://*) ;;
    /* | *://*) fail "--gin_file must be a path inside the repository or gs://..., because the VM has only those; got '$gin_file'." ;;
    *)
        if [ ! -f "$repository/$gin_file" ]; then
            fail "--gin_file: $repository has no $gin_file. It has: $(cd "$repository" && echo configs/*.gin)"
        fi
        git -C "$repository" cat-file -e "HEAD:./$gin_file" 2>/dev/null ||
            machine_fail "$gin_file isn't committed, and the last commit is what is copied. Run: git add $(quote "$gin_file") && git commit"
        ;;
    esac
    changed=$(git -C "$repository" status --porcelain --untracked-files=no)
    [ -z "$changed" ] ||
        machine_fail "there are changes that the last commit, which is copied, hasn't got. Commit them (or git stash): $(echo "$changed" | head -n 5 | tr '\n' ' ')"
fi
command -v gcloud >/dev/null ||
    machine_fail "gcloud isn't on the PATH. Install the Google Cloud CLI (https://cloud.google.com/sdk/docs/install) and run: gcloud auth login"

tpu_vm=(gcloud compute tpus tpu-vm)
place=("--zone=$zone")
[ -z "$project" ] || place+=("--project=$project")
describe=("${tpu_vm[@]}" describe "$name" "${place[@]}" "--format=value(state,acceleratorType)")
create_vm=("${tpu_vm[@]}" create "$name" "${place[@]}" "--accelerator-type=$type" "--version=$image")
[ $spot = no ] || create_vm+=(--spot)
delete_vm=("${tpu_vm[@]}" delete "$name" "${place[@]}" --quiet)
on_all=("${tpu_vm[@]}" ssh "$name" "${place[@]}" --worker=all)
on_first=("${tpu_vm[@]}" ssh "$name" "${place[@]}" --worker=0)

if [ $create = yes ]; then
    if [ "$dry_run" = yes ]; then
        run "${describe[@]}"
        note "The next command runs only if the one above finds no VM:"
        run "${create_vm[@]}"
    else
        note "+ $(quote "${describe[@]}")"
        errors=$(mktemp)
        trap 'rm -f "$errors"' EXIT
        if answer=$("${describe[@]}" 2>"$errors"); then
            # Two words with a tab between; the second is empty for a VM that was made with a topology.
            read -r state its_type <<<"$answer" || true
            [ -z "$its_type" ] || [ "$its_type" = "$type" ] ||
                fail "the VM $name is a $its_type, but --type=$type. Give --type=$its_type, or another --name."
            case "$state" in
            READY) note "The VM $name is there: it is used as it is." ;;
            PREEMPTED | TERMINATED) fail "the VM $name is $state and can't be started again. Delete it and launch again: $(quote "${delete_vm[@]}")" ;;
            STOPPED) fail "the VM $name is STOPPED. Start it and launch again: $(quote "${tpu_vm[@]}" start "$name" "${place[@]}")" ;;
            *) fail "the VM $name is '$state', not READY. Wait a little and launch again, or delete it: $(quote "${delete_vm[@]}")" ;;
            esac
        else
            grep -q NOT_FOUND "$errors" ||
                fail "gcloud can't say whether there is a VM $name in $zone: $(cat "$errors") Check --zone and --project, and run: gcloud auth login"
            run "${create_vm[@]}"
        fi
    fi
fi

# ~ and $ in what follows are for the VM's shell, hence the single quotes.
# shellcheck disable=SC2016,SC2088
{
    log='~/hamgan/train.log'
    # The name too, because a number is given to another process after a restart.
    running='grep -qs scripts/train.py "/proc/$(cat ~/hamgan/train.pid 2> /dev/null)/cmdline"'

    # A second training in the same model_dir would overwrite the checkpoints of the first.
    run "${on_first[@]}" --command='mkdir -p ~/hamgan; if '"$running"'; then echo "ERROR: a training is running on this VM, process $(cat ~/hamgan/train.pid). Wait for its end, or stop it: kill $(cat ~/hamgan/train.pid)" >&2; exit 1; fi'

    if [ $clone = yes ]; then
        run "${on_all[@]}" --command="rm -rf ~/hamgan/source && git clone --depth=1 $(quote "$repository") ~/hamgan/source"
    else
        run git -C "$repository" archive --format=tar.gz "--output=$archive" HEAD
        run "${tpu_vm[@]}" scp "$archive" "$name:launch_tpu.tar.gz" "${place[@]}" --worker=all
        run "${on_all[@]}" --command='rm -rf ~/hamgan/source && mkdir -p ~/hamgan/source && tar -xzf ~/launch_tpu.tar.gz -C ~/hamgan/source'
    fi

    # Ubuntu's Python comes without the part of venv that brings pip; a new VM's own updates may hold apt's lock.
    run "${on_all[@]}" --command='python3 -c "import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))" || { echo "ERROR: the image has $(python3 --version), but tensorflow-tpu needs 3.10, 3.11 or 3.12. Delete the VM and choose another --version." >&2; exit 1; }'
    run "${on_all[@]}" --command='python3 -c "import ensurepip" 2> /dev/null || { sudo apt-get -o DPkg::Lock::Timeout=600 update -qq && sudo apt-get -o DPkg::Lock::Timeout=600 install -y -qq python3-venv; }'
    run "${on_all[@]}" --command='python3 -m venv --upgrade-deps ~/hamgan/venv'
    run "${on_all[@]}" --command='cd ~/hamgan/source && ~/hamgan/venv/bin/pip install --quiet -r requirements-tpu.txt'
    run "${on_all[@]}" --command='cd ~/hamgan/source && ~/hamgan/venv/bin/pip install --quiet --no-deps -r requirements-tpu-nodeps.txt'
    run "${on_all[@]}" --command='cd ~/hamgan/source && ~/hamgan/venv/bin/pip install --quiet --no-deps -e .'

    # On a slice the image's server holds the chips of every host; a process that loads libtpu as well gets none.
    environment=""
    tpu=local
    if [ $slice = yes ]; then
        environment="TPU_LOAD_LIBRARY=0 "
        tpu=$name
    fi
    run "${on_all[@]}" --command="cd ~/hamgan/source && $environment~/hamgan/venv/bin/python scripts/check_environment.py --tpu"

    train=(scripts/train.py --accelerator=tpu "--tpu=$tpu" "--gin_file=$gin_file" "--model_dir=$model_dir" "--data_dir=$data_dir" --mode=train_and_evaluate)
    for binding in ${gin_params[@]+"${gin_params[@]}"}; do
        train+=("--gin_param=$binding")
    done
    # The training outlives the connection; its process number and, at its end, its exit status are kept. One that ends within
    # the first minute has most likely failed: its log is shown.
    start='cd ~/hamgan/source && rm -f ~/hamgan/train.status && { ( trap "" HUP; '
    start+="${environment}PYTHONUNBUFFERED=1 nohup ~/hamgan/venv/bin/python $(quote "${train[@]}")"
    start+=' & echo $! > ~/hamgan/train.pid; wait $!; echo $? > ~/hamgan/train.status ) >> ~/hamgan/train.log 2>&1 < /dev/null & } ; '
    start+='for second in $(seq 60); do test ! -f ~/hamgan/train.status || break; sleep 1; done; tail -n 20 ~/hamgan/train.log; '
    start+='test ! -f ~/hamgan/train.status || exit "$(cat ~/hamgan/train.status)"'
    run "${on_first[@]}" --command="$start"

    note ""
    note "Follow the training:  $(quote "${on_first[@]}" --command="tail -n 100 -f $log")"
    note "Its curves:           tensorboard --logdir=$(quote "$model_dir")"
    note "Stop it:              $(quote "${on_first[@]}" --command='kill "$(cat ~/hamgan/train.pid)"')"
    note "Delete the VM:        $(quote "${delete_vm[@]}")"

    if [ $delete = yes ]; then
        # Ends with the training's exit status; 1 when there is none, after a restart of the VM.
        wait_for_end=("${on_first[@]}" --command='while '"$running"'; do sleep 60; done; sleep 1; exit "$(cat ~/hamgan/train.status || echo 1)"')
        if [ "$dry_run" = yes ]; then
            run "${wait_for_end[@]}"
            run "${delete_vm[@]}"
        else
            note "Waiting for the end of the training; interrupting this doesn't stop it."
            # ssh itself ends with 255, when the connection breaks: that says nothing about the training.
            status=0
            for attempt in 1 2 3 4 5 6 7 8 9 10; do
                status=0
                "${wait_for_end[@]}" || status=$?
                [ $status = 255 ] || break
                note "The connection broke (attempt $attempt of 10)."
                sleep 60
            done
            [ $status = 0 ] ||
                fail "the training didn't end well (status $status), so the VM is kept. Look at its log: $(quote "${on_first[@]}" --command="tail -n 100 $log")"
            run "${delete_vm[@]}"
        fi
    fi
}
