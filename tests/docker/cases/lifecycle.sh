# From create to rm.

state() { docker inspect --format '{{.State.Status}} {{.State.Running}} {{.State.Paused}} {{.State.ExitCode}}' "$1"; }

#: `create`, `start`, `stop` (SIGTERM), `restart`, `rename`, `rm`; the states on the way
states() {
	docker create --name boat busybox sh -c 'trap "exit 5" TERM; echo up; while :; do sleep 0.1; done' >/dev/null
	state boat
	docker start boat
	wait_for_log boat up
	state boat
	docker restart -t 60 boat
	wait_for_log boat 'up.*up'
	docker rename boat ship
	docker stop -t 60 ship
	state ship
	says 1 'cannot remove container|You cannot remove' sh -c 'docker start ship >/dev/null; docker rm ship'
	docker rm -f ship
	test -z "$(docker ps -aq)"
}

#: `stop` (SIGKILL after the time-out), `kill -s`, `wait`
signals() {
	docker run -d --name deaf busybox sh -c 'trap "" TERM; trap "echo heard" HUP; echo up; while :; do sleep 0.1; done' >/dev/null
	wait_for_log deaf up
	docker kill -s HUP deaf
	wait_for_log deaf heard
	docker wait deaf >code &
	docker stop -t 1 deaf
	wait $!
	cat code
	state deaf
	says 1 'is not running' docker kill deaf
}

#: `pause`, `unpause`
pause() {
	docker run -d --name clock busybox sh -c 'while :; do echo tick >>/ticks; sleep 0.05; done' >/dev/null
	wait_for docker exec clock test -s /ticks
	docker pause clock
	state clock
	says 1 'is paused' docker exec clock true
	docker cp -q clock:/ticks before
	sleep 1
	docker cp -q clock:/ticks after
	cmp before after
	docker unpause clock
	wait_for sh -c 'docker cp -q clock:/ticks later; ! cmp -s after later'
	state clock
	docker kill clock
}

#: `start -a -i`, `attach`, detach keys
attach() {
	docker create -i --name echo busybox sh -c 'read word; echo "got $word"; exit 4' >/dev/null
	echo tide | says 4 '' docker start -a -i echo
	docker run -dit --name shell busybox >/dev/null
	(sleep 3; printf 'echo one$((1 + 1))\r'; sleep 3; printf '\020\021'; sleep 1) |
		script --quiet --return --command 'docker attach shell' /dev/null | grep -o 'one2\|read escape sequence' | sort -u || true
	state shell
	docker kill shell
}

#: `--restart no`, `on-failure:N`, `always`
restart_policies() {
	docker run -d --name fails --restart on-failure:2 busybox sh -c 'echo run >>/runs; exit 3' >/dev/null
	docker run -d --name always --restart always busybox sh -c 'echo run >>/runs; test $(wc -l </runs) = 1 || sleep 1000' >/dev/null
	wait_for sh -c 'docker inspect --format "{{.RestartCount}} {{.State.Status}}" fails | grep -x "2 exited"'
	docker inspect --format '{{.State.ExitCode}}' fails
	docker cp -q fails:/runs - | tar -xO
	wait_for sh -c 'docker inspect --format "{{.RestartCount}} {{.State.Running}}" always | grep -x "1 true"'
	docker stop -t 0 always
	state always
	docker run -d --name once --restart no busybox false >/dev/null
	wait_for sh -c 'docker inspect --format "{{.RestartCount}} {{.State.Status}}" once | grep -x "0 exited"'
}

#: a container that ends at once, five times; nothing is lost of its output
quick() {
	for number in 1 2 3 4 5; do docker run --rm busybox sh -c "seq 1000 | tail -n 1; exit $number" || echo "status $?"; done
}

#: `HEALTHCHECK` options and health states
health() {
	docker run -d --name patient --health-cmd 'test -e /well' --health-interval 1s --health-retries 1 --health-timeout 30s busybox sleep 1000 >/dev/null
	wait_for sh -c 'docker inspect --format "{{.State.Health.Status}}" patient | grep -x unhealthy'
	docker exec patient touch /well
	wait_for sh -c 'docker inspect --format "{{.State.Health.Status}}" patient | grep -x healthy'
	docker ps --filter health=healthy --format '{{.Names}}'
	docker rm -f patient
}

#: dockerd restarted with `live-restore`: containers run on, exit codes are found
live_restore() {
	configure '"live-restore": true'
	docker run -d --name survivor -p 8090:80 busybox sh -c 'echo alive >/index.html; httpd -h /; trap "exit 9" TERM; while :; do sleep 0.1; done' >/dev/null
	docker run -d --name leaver busybox sh -c 'sleep 4; exit 6' >/dev/null
	stop_dockerd
	sleep 6
	start_dockerd
	state survivor
	state leaver
	wait_for wget -q -O - http://127.0.0.1:8090/
	docker exec survivor echo exec
	docker stop -t 60 survivor
	state survivor
	configure ''
}

#: dockerd restarted: containers that are to be restarted are; `--restart unless-stopped`
dockerd_restart() {
	docker run -d --name always --restart always busybox sleep 1000 >/dev/null
	docker run -d --name unless --restart unless-stopped busybox sleep 1000 >/dev/null
	docker run -d --name stopped --restart unless-stopped busybox sleep 1000 >/dev/null
	docker run -d --name never busybox sleep 1000 >/dev/null
	docker stop -t 0 stopped
	stop_dockerd
	start_dockerd
	for name in always unless; do
		wait_for sh -c "docker inspect --format '{{.State.Status}}' $name | grep -x running"
	done
	docker inspect --format '{{.State.Status}}' stopped never
	docker rm -f always unless stopped never
}
