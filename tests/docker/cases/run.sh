# docker run: what a container is given.

#: `--name`, `-e`, `--env-file`, `-w`, `-u`, `--group-add`, `--hostname`, `--add-host`, `--dns`, `--rm`
process() {
	echo FROM_FILE=1 >env
	docker run --rm --name me --env-file env -e GIVEN=2 -w /home -u 1000 --group-add 2000 \
		--hostname ship --add-host tower:192.0.2.1 --dns 192.0.2.53 --dns-search example.org \
		busybox sh -c 'env | sort; pwd; id; hostname; grep tower /etc/hosts; grep -v ^# /etc/resolv.conf'
	test -z "$(docker ps -aq)"
}

#: `--entrypoint`, `--init`, `--label`, `-i` with a pipe, standard output and error apart
entrypoint() {
	echo tide | docker run -i --rm --init --label sea=north --entrypoint /bin/sh busybox \
		-c 'cat; echo wrong >&2; cat /proc/1/comm' 2>errors
	cat errors
}

#: `-it`: a terminal, its size, exit code
terminal() {
	# A terminal for the docker command, 100 characters wide.
	script --quiet --return --command \
		'stty cols 100 rows 30; docker run -it --rm busybox sh -c "sleep 2; tty; stty size; exit 7"' /dev/null ||
		echo "status $?"
}

#: exit codes 0-255, 125, 126, 127, 128 + signal
exit_codes() {
	says 0 '' docker run --rm busybox true
	says 255 '' docker run --rm busybox sh -c 'exit 255'
	says 137 '' docker run --rm busybox sh -c 'sh -c "kill -9 \$\$"; exit $?'
	says 127 'executable file not found' docker run --rm busybox no-such-program
	says 126 'permission denied' docker run --rm busybox /etc/passwd
	says 125 'unknown flag' docker run --rm --no-such-option busybox
}

#: `--read-only`, `--tmpfs`, `--shm-size`
read_only() {
	docker run --rm --read-only --tmpfs /scratch:size=1m,mode=1770 --shm-size 2m busybox sh -c 'exec 2>&1
		touch /file; echo "status $?"
		touch /scratch/file; echo "status $?"
		df -k /scratch /dev/shm | awk "{ print \$2, \$6 }"; stat -c %a /scratch'
}

#: `--ulimit`, `--sysctl`, `--cap-add`, `--cap-drop`, `--security-opt no-new-privileges`
limits() {
	docker run --rm --ulimit nofile=99:100 --sysctl net.core.somaxconn=77 --sysctl kernel.msgmax=9000 \
		--cap-drop ALL --cap-add CHOWN --security-opt no-new-privileges busybox sh -c '
		ulimit -n; ulimit -Hn; cat /proc/sys/net/core/somaxconn /proc/sys/kernel/msgmax
		grep -E "^(Cap|NoNewPrivs|Seccomp:)" /proc/self/status; chown 1000 /etc/passwd && stat -c %u /etc/passwd'
}

#: `--security-opt seccomp=PROFILE`, `seccomp=unconfined`
seccomp() {
	cat >profile.json <<-'EOF'
		{"defaultAction": "SCMP_ACT_ALLOW",
		 "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]}
	EOF
	docker run --rm --security-opt seccomp=profile.json busybox sh -c \
		'exec 2>&1; mkdir /tmp/a; echo "status $?"; grep Seccomp: /proc/self/status'
	docker run --rm --security-opt seccomp=unconfined busybox sh -c 'grep Seccomp: /proc/self/status'
}

#: `--privileged`: mounts, all capabilities
privileged() {
	docker run --rm --privileged busybox sh -c 'exec 2>&1
		mkdir /mnt; mount -t tmpfs none /mnt && grep -c " /mnt tmpfs" /proc/mounts
		mount -o remount,ro / && touch /x; echo "status $?"; ls /dev/null /dev/fuse'
}

#: `--device`: those that a guest has (`/dev/fuse`, `/dev/net/tun`), renamed and with rights
device() {
	docker run --rm --device /dev/fuse:/dev/fuse-here:r --device /dev/net/tun busybox sh -c 'exec 2>&1
		ls -l /dev/fuse-here /dev/net/tun | awk "{ print \$1, \$5, \$6, \$NF }"
		(: </dev/fuse-here); echo "status $?"; (: >/dev/fuse-here); echo "status $?"'
}

#: `--device` with a block device of the host
block_device() {
	truncate -s 16M disk.img
	mke2fs -q -F disk.img 2>/dev/null
	loop=$(losetup --find --show disk.img)
	docker run --rm --device "$loop:/dev/data" busybox sh -c \
		'dd if=/dev/data bs=1k skip=1 count=1 2>/dev/null | od -An -tx1 -j56 -N2; blockdev --getsize64 /dev/data' ||
		{ losetup --detach "$loop"; return 1; }
	losetup --detach "$loop"
}

#: `--memory`, `--memory-swap`, `--cpus`, `--cpu-shares`, `--cpuset-cpus`, `--pids-limit`, `--oom-score-adj`
resources() {
	docker run --rm --memory 64m --memory-swap 64m --cpus 0.5 --cpu-shares 512 --cpuset-cpus 0 --pids-limit 50 \
		--oom-score-adj 500 busybox sh -c 'cd /sys/fs/cgroup
		# Runtimes differ in how they turn shares into a weight.
		grep . memory.max cpu.max cpuset.cpus pids.max; test $(cat cpu.weight) -lt 100; echo $?; cat /proc/self/oom_score_adj; nproc'
}

#: `--memory` enforced: exit code 137, `OOMKilled`
out_of_memory() {
	says 137 '' docker run --name hog --memory 32m --memory-swap 32m busybox sh -c 'tail /dev/zero'
	docker inspect --format '{{.State.OOMKilled}} {{.State.ExitCode}} {{.State.Status}}' hog
}

#: `--cpus` unset: all the CPUs of the host
all_resources() {
	# The test host has Hull's machines have one.
	sed -i.was '/^vcpus/d' /etc/hull/config.toml
	# runc from 1.3 on gives those, too, that dockerd and this shell are kept away from.
	test "$(docker run --rm busybox nproc)" -ge "$(nproc)"
	docker run --rm --cpuset-cpus "$(($(nproc) - 1))" busybox sh -c 'nproc; grep Cpus_allowed_list /proc/self/status'
	mv /etc/hull/config.toml.was /etc/hull/config.toml
}

#: `--blkio-weight`, `--device-read-bps`
block_io() {
	docker run --rm --blkio-weight 300 busybox true
	truncate -s 1M disk.img
	loop=$(losetup --find --show disk.img)
	docker run --rm --device-read-bps "$loop:1mb" busybox true || { losetup --detach "$loop"; return 1; }
	losetup --detach "$loop"
}

#: `--cgroup-parent`: the container's group of the host, and its weight there, also by `update`
cgroup_parent() {
	docker run -d --name grouped --cgroup-parent /sea --cpu-shares 512 busybox sleep 1001 >/dev/null
	group=/sys/fs/cgroup/sea/$(docker inspect --format '{{.Id}}' grouped)
	grep -qx "$(docker inspect --format '{{.State.Pid}}' grouped)" "$group/cgroup.procs"
	# Runtimes differ in how they turn shares into a weight.
	before=$(cat "$group/cpu.weight")
	docker update --cpu-shares 2048 grouped
	test "$before" -lt 100
	test "$(cat "$group/cpu.weight")" -gt "$before"
	docker rm -f grouped
	wait_for test ! -e "$group"
	rmdir /sys/fs/cgroup/sea
}

#: `--ipc private`, `--ipc shareable`, `--ipc container:X`, `--pid container:X`
shared_namespaces() {
	docker run -d --name first --ipc shareable busybox sh -c 'echo said >/dev/shm/word; sleep 1001'
	wait_for docker exec first test -s /dev/shm/word
	docker run --rm --ipc container:first --pid container:first busybox sh -c \
		'cat /dev/shm/word; ps -o args | grep "[s]leep 1001"'
	docker run --rm --ipc private busybox ls -A /dev/shm
}

#: `--uts host`, `--cgroupns host`, `--userns host`
host_namespaces() {
	docker run --rm --uts host --cgroupns host --userns host busybox echo ran
	says 0 '' docker run --rm --cgroupns private busybox cat /proc/self/cgroup
}

#: `--pid host`: the host's processes
pid_host() {
	docker run --rm --pid host busybox ps -o args | grep -c '[d]ockerd'
}
pid_host_refused() {
	says 125 'pid namespace \(--pid host.* is not supported: .* virtual machine .*leave the option out' \
		docker run --pid host --name refused busybox touch /ran
	# As docker has it of any container that could not be started.
	docker ps -a --filter name=refused --format '{{.Names}} {{.State}}'
	docker diff refused
	docker rm refused
	# Containers see each other's processes all the same.
	docker run -d --name first busybox sleep 1001 >/dev/null
	docker run --rm --pid container:first busybox ps -o args | grep '[s]leep 1001'
	docker kill first
}

#: `--platform`
platform() {
	docker run --rm --platform linux/amd64 busybox uname -m
	says 125 'does not match' docker run --rm --pull never --platform linux/s390x busybox true
}

#: `--stop-signal`, `--stop-timeout`, `--cidfile`, `--mount type=tmpfs`, `--domainname`
stop_options() {
	docker run -d --name stopped --stop-signal USR1 --stop-timeout 60 --cidfile id --domainname sea.example \
		--mount type=tmpfs,destination=/scratch busybox \
		sh -c 'trap "echo got it; exit 3" USR1; grep -c " /scratch tmpfs" /proc/mounts; while :; do sleep 0.1; done'
	wait_for_log stopped 1
	docker stop stopped
	docker logs stopped
	docker inspect --format '{{.State.ExitCode}} {{.Config.Domainname}}' stopped
	test "$(cat id)" = "$(docker inspect --format '{{.Id}}' stopped)"
}
