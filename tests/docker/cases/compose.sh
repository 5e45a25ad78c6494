# Compose: `docker-compose` as Debian has it; the stacks of the guides.

#: the first stack of this page
guide() {
	docker-compose -f "$here/compose.yaml" up -d --wait
	# The kernel's release is the one thing that may differ.
	docker-compose -f "$here/compose.yaml" logs --no-log-prefix visitor | sed "s/$(docker run --rm busybox uname -r)/RELEASE/"
	wget -q -O - http://127.0.0.1:8080/ | cut -d' ' -f1-3
	docker-compose -f "$here/compose.yaml" down
}

#: `up -d --wait`, `depends_on` with health conditions, `.env`, a named volume and a network; web + API + PostgreSQL; `down`, `down -v`
stack() {
	echo 'DB_PASSWORD=tide' >.env
	cat >nginx.conf <<-'EOF'
		events {}
		http { server { listen 80; location / { proxy_pass http://api:8000; } } }
	EOF
	cat >database.sh <<-'EOF'
		set -e
		data=/var/lib/postgresql/data
		chown postgres $data && mkdir -p /run/postgresql && chown postgres /run/postgresql
		as() { setpriv --reuid postgres --regid postgres --clear-groups "$@"; }
		if [ ! -e $data/PG_VERSION ]; then
			echo "$POSTGRES_PASSWORD" >/tmp/password
			as initdb -D $data --locale C --auth-host scram-sha-256 --no-sync --pwfile /tmp/password >/dev/null
			echo 'host all all all scram-sha-256' >>$data/pg_hba.conf
		fi
		exec setpriv --reuid postgres --regid postgres --clear-groups postgres -D $data -h '*'
	EOF
	cat >api.py <<-'EOF'
		import os
		import psycopg2
		from http.server import BaseHTTPRequestHandler, HTTPServer

		def query(sql, *values):
		    with psycopg2.connect(host="db", user="postgres", password=os.environ["DB_PASSWORD"]) as db:
		        with db.cursor() as cursor:
		            cursor.execute(sql, values)
		            return cursor.fetchall() if cursor.description else []

		class Api(BaseHTTPRequestHandler):
		    def answer(self, text):
		        self.send_response(200)
		        self.end_headers()
		        self.wfile.write(text.encode())
		    def do_GET(self):
		        self.answer("".join(f"{name}\n" for (name,) in query("SELECT name FROM ships ORDER BY name")))
		    def do_POST(self):
		        name = self.rfile.read(int(self.headers["Content-Length"])).decode()
		        query("INSERT INTO ships VALUES (%s)", name)
		        self.answer(f"{name} is there\n")

		query("CREATE TABLE IF NOT EXISTS ships (name text)")
		HTTPServer(("", 8000), Api).serve_forever()
	EOF
	cat >compose.yaml <<-'EOF'
		name: fleet
		services:
		  db:
		    image: localhost/hull/services
		    command: sh /database.sh
		    environment: { POSTGRES_PASSWORD: "${DB_PASSWORD:?}" }
		    volumes: [ "data:/var/lib/postgresql/data", "./database.sh:/database.sh:ro" ]
		    healthcheck: { test: "pg_isready -h 127.0.0.1", interval: 2s, timeout: 30s, retries: 60 }
		  api:
		    image: localhost/hull/services
		    command: python3 -u /api.py
		    environment: [ DB_PASSWORD ]
		    volumes: [ "./api.py:/api.py:ro" ]
		    depends_on: { db: { condition: service_healthy } }
		    healthcheck: { test: "python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", 8000))'", interval: 2s, timeout: 30s, retries: 60 }
		  web:
		    image: localhost/hull/services
		    command: nginx -g 'daemon off;' -c /nginx.conf
		    volumes: [ "./nginx.conf:/nginx.conf:ro" ]
		    ports: [ "8080:80" ]
		    depends_on: { api: { condition: service_healthy } }
		    healthcheck: { test: "python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", 80))'", interval: 2s, timeout: 30s, retries: 60 }
		volumes: { data: {} }
	EOF
	docker-compose up -d --wait
	docker-compose ps --format '{{.Service}} {{.State}} {{.Health}}' | sort
	wget -q -O - --post-data Endeavour http://127.0.0.1:8080/
	wget -q -O - --post-data Beagle http://127.0.0.1:8080/
	wget -q -O - http://127.0.0.1:8080/
	docker-compose exec -T db psql -h /tmp -U postgres -c 'SELECT 1' >/dev/null 2>&1 || true
	docker-compose down
	docker volume ls --format '{{.Name}}'
	docker-compose up -d --wait
	wget -q -O - http://127.0.0.1:8080/
	docker-compose down -v
	docker volume ls --format '{{.Name}}'
	docker network ls --filter name=fleet --format '{{.Name}}'
}

#: two services and a database, published on host ports
published() {
	cat >compose.yaml <<-'EOF'
		name: harbour
		services:
		  red: &page
		    image: busybox
		    command: sh -c 'hostname >/index.html; exec httpd -f -h /'
		    hostname: red
		    ports: [ "8081:80" ]
		  green: { <<: *page, hostname: green, ports: [ "127.0.0.1:8082:80" ] }
		  store:
		    image: localhost/hull/services
		    command: redis-server --bind 0.0.0.0 --protected-mode no --save ''
		    ports: [ "6379:6379" ]
	EOF
	docker-compose up -d
	for port in 8081 8082; do
		wait_for wget -q -O - "http://127.0.0.1:$port/"
	done
	wait_for redis 127.0.0.1 PING
	redis 127.0.0.1 SET ship Beagle
	docker-compose exec -T red sh -c 'printf "GET ship\r\n" | timeout 20 nc store 6379 | head -n 2'
	docker-compose port green 80
	docker-compose down
	says 1 '' wget -q -O - http://127.0.0.1:8081/
}
redis() { # HOST WORD...: what the server answers first
	local host=$1 answer=
	shift
	exec 3<>"/dev/tcp/$host/6379" || return
	printf '%s\r\n' "$*" >&3
	read -r -t 20 answer <&3
	exec 3>&-
	echo "$answer"
	[[ -n $answer ]]
}
export -f redis

#: `up --scale`, `logs`, `exec`, `run`, `stop`, `start`, `restart`, `ps`; profiles
verbs() {
	cat >compose.yaml <<-'EOF'
		name: verbs
		services:
		  bell:
		    image: busybox
		    command: sh -c 'echo ding; exec sleep 1000'
		    stop_grace_period: 0s
		  clapper:
		    image: busybox
		    command: echo clap
		    profiles: [ loud ]
	EOF
	docker-compose up -d --scale bell=3
	docker-compose ps --format '{{.Name}} {{.State}}' | sort
	wait_for sh -c 'test "$(docker-compose logs --no-log-prefix bell | grep -c ding)" = 3'
	timeout 5 docker-compose logs -f --no-log-prefix bell | sort | uniq -c || true
	docker-compose exec -T --index 2 bell echo inside
	docker-compose run --rm -T bell sh -c 'echo once; exit 3' || echo "status $?"
	docker-compose stop
	docker-compose ps -a --format '{{.Name}} {{.State}}' | sort
	docker-compose start
	docker-compose restart
	docker-compose ps --format '{{.Name}} {{.State}}' | sort
	docker-compose up -d --scale bell=1
	docker-compose ps --format '{{.Name}} {{.State}}'
	docker-compose --profile loud up --no-log-prefix clapper
	docker-compose --profile loud down
}

#: only what changed is made anew; secrets, configs, `config`, files of variables and their defaults
changes() {
	echo deep >secret
	echo 'FROM_FILE=yes' >variables
	cat >compose.yaml <<-'EOF'
		name: changes
		services:
		  still: { image: busybox, command: sleep 1000, stop_grace_period: 0s }
		  moved:
		    image: busybox
		    command: sleep 1000
		    stop_grace_period: 0s
		    env_file: [ variables ]
		    environment: { TURN: "${TURN:-first}" }
		    secrets: [ key ]
		    configs: [ { source: note, target: /etc/note } ]
		secrets: { key: { file: ./secret } }
		configs: { note: { content: "turn ${TURN:-first}" } }
	EOF
	docker-compose config --services | sort
	docker-compose up -d
	before=$(docker-compose ps -q still)
	docker-compose exec -T moved sh -c 'cat /run/secrets/key; cat /etc/note; echo; echo $TURN $FROM_FILE'
	TURN=second docker-compose up -d
	docker-compose exec -T moved sh -c 'cat /etc/note; echo; echo $TURN'
	test "$before" = "$(docker-compose ps -q still)"
	docker-compose down
}
