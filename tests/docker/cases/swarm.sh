# Swarm.

#: `swarm init`, `node ls`; `service create`, `ls`, `ps`, `scale`, `logs`, `update`, `rollback`, `rm`
services() {
	docker swarm init --advertise-addr 127.0.0.1 >/dev/null
	docker node ls --format '{{.Status}} {{.Availability}} {{.ManagerStatus}}'
	docker service create --quiet --name bell --replicas 2 --no-resolve-image busybox sh -c 'echo ding; exec sleep 1000' >/dev/null
	docker service ls --format '{{.Name}} {{.Mode}} {{.Replicas}}'
	docker service scale bell=3 >/dev/null
	docker service ps bell --format '{{.Name}} {{.DesiredState}}' | sort
	wait_for sh -c 'test "$(docker service logs --raw bell | grep -c ding)" = 3'
	docker service update --quiet --no-resolve-image --env-add TURN=second --stop-grace-period 0s bell >/dev/null
	docker service inspect --format '{{.UpdateStatus.State}} {{.Spec.TaskTemplate.ContainerSpec.Env}}' bell
	docker service rollback --quiet bell >/dev/null
	docker service inspect --format '{{.UpdateStatus.State}} {{.Spec.TaskTemplate.ContainerSpec.Env}}' bell
	docker service rm bell
	wait_for sh -c 'test -z "$(docker ps -q)"'
}

#: an overlay network: service names, the virtual address, ports published through the ingress network and on the host
overlay() {
	docker swarm init --advertise-addr 127.0.0.1 >/dev/null
	docker network create -d overlay --attachable --subnet 198.18.20.0/24 sea >/dev/null
	docker service create --quiet --no-resolve-image --name web --network sea --replicas 2 -p 8086:80 busybox \
		sh -c 'echo tide >/index.html; exec httpd -f -h /' >/dev/null
	docker service create --quiet --no-resolve-image --name direct -p mode=host,published=8087,target=80 busybox \
		sh -c 'echo direct >/index.html; exec httpd -f -h /' >/dev/null
	docker service create --quiet --no-resolve-image --name client --network sea busybox sleep 1000 >/dev/null
	client=$(docker ps -q --filter name=client)
	wait_for docker exec "$client" wget -q -O - http://web/
	wait_for docker exec "$client" wget -q -O - http://tasks.web/
	docker exec "$client" nslookup -type=a tasks.web 127.0.0.11 | grep -c '^Name:'
	docker run --rm --network sea busybox wget -q -O - http://web/
	wait_for wget -q -O - http://127.0.0.1:8087/
	wait_for wget -q -O - http://127.0.0.1:8086/
}

#: `stack deploy`, `stack ls`, `services`, `ps`, `rm`; secrets and configs
stacks() {
	docker swarm init --advertise-addr 127.0.0.1 >/dev/null
	echo deep | docker secret create key - >/dev/null
	cat >stack.yaml <<-'EOF'
		version: "3.8"
		services:
		  web:
		    image: busybox
		    command: sh -c 'cat /run/secrets/key /note >/index.html; exec httpd -f -h /'
		    secrets: [ key ]
		    configs: [ { source: note, target: /note } ]
		    deploy: { replicas: 1 }
		  client:
		    image: busybox
		    command: sleep 1000
		secrets: { key: { external: true } }
		configs: { note: { file: ./note } }
	EOF
	echo written >note
	docker stack deploy --detach=true --resolve-image never -c stack.yaml fleet | sort
	wait_for sh -c 'docker stack services fleet --format "{{.Name}} {{.Replicas}}" | sort | tr "\n" " " | grep -x "fleet_client 1/1 fleet_web 1/1 "'
	client=$(docker ps -q --filter name=fleet_client)
	wait_for docker exec "$client" wget -q -O - http://web/
	docker stack ps fleet --format '{{.Name}} {{.DesiredState}}' | sort
	docker stack rm fleet | sort
	wait_for sh -c 'test -z "$(docker ps -q)"'
	docker secret rm key
}
